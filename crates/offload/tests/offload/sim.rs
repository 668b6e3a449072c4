//! A file system in memory that can lose its power and fail in any call.
//!
//! What was written and not synced is there until the power goes; then each write is kept, lost or torn, and each name
//! that was made, changed or removed since the folder was synced is as before or as after.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use heterokv_offload::{File, Files};
use proptest::prelude::Rng;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// A call that changes or reads something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Read,
    Write,
    Sync,
    Rename,
    Remove,
    SyncFolder,
}

/// How a call goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    #[default]
    Well,
    /// Fails and does nothing.
    Fails(ErrorKind),
    /// A read or write that moves this many bytes and no more.
    Short(usize),
    /// A write that moves this many bytes and then fails.
    FailsAfter(usize, ErrorKind),
    /// A read with one bit of the other value.
    Flips(usize),
    /// A write or a sync that says that all went well, and does nothing.
    Lies,
    Panics,
}

type Hook = dyn Fn(Call, &str) -> Fate + Send + Sync;

/// The file system. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    /// Changes of names since the folder was synced.
    changes: Vec<Change>,
    hook: Option<Arc<Hook>>,
    num_changing_calls: usize,
    power_ends_at: Option<usize>,
    is_locked: bool,
}

#[derive(Clone)]
enum Change {
    Set(PathBuf, Node),
    Unset(PathBuf),
    Move(PathBuf, PathBuf, Node),
}

type Node = Arc<Mutex<Data>>;

#[derive(Default)]
struct Data {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

struct SimFile {
    sim: Sim,
    name: String,
    node: Node,
}

/// Whoever drops it unlocks.
struct Unlock(Sim);

impl Sim {
    /// Decides how calls go from now on; the second argument is the file's name.
    pub(crate) fn set_hook(&self, hook: impl Fn(Call, &str) -> Fate + Send + Sync + 'static) {
        self.state().hook = Some(Arc::new(hook));
    }

    pub(crate) fn clear_hook(&self) {
        self.state().hook = None;
    }

    /// Every call fails from the `calls`-th change on.
    pub(crate) fn end_power_after(&self, calls: usize) {
        self.state().power_ends_at = Some(calls);
    }

    pub(crate) fn num_changing_calls(&self) -> usize {
        self.state().num_changing_calls
    }

    /// Changes the bytes of a file.
    pub(crate) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let state = self.state();
        let file = state.names.iter().find(|(path, _)| path.ends_with(name)).expect("it is there");
        let mut data = file.1.lock().unwrap();
        edit(&mut data.now);
        data.durable = data.now.clone();
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().map(|path| name_of(path)).collect()
    }

    /// What is found after the power went.
    pub(crate) fn after_power_loss(&self, rng: &mut dyn Rng) -> Self {
        let state = self.state();
        let mut names = state.durable_names.clone();
        for change in &state.changes {
            if rng.next_u32().is_multiple_of(2) {
                continue;
            }
            match change.clone() {
                Change::Set(path, node) => drop(names.insert(path, node)),
                Change::Unset(path) => drop(names.remove(&path)),
                Change::Move(from, to, node) => {
                    names.remove(&from);
                    names.insert(to, node);
                }
            }
        }
        let mut found = State::default();
        for (path, node) in names {
            let data = node.lock().unwrap();
            let mut bytes = data.durable.clone();
            for (offset, written) in &data.unsynced {
                let fate = rng.next_u32() % 3;
                for (i, sector) in written.chunks(SECTOR).enumerate() {
                    if fate == 0 || (fate == 1 && rng.next_u32().is_multiple_of(2)) {
                        write(&mut bytes, offset + i * SECTOR, sector);
                    }
                }
            }
            let data = Data { now: bytes.clone(), durable: bytes, unsynced: Vec::new() };
            let node = Arc::new(Mutex::new(data));
            found.names.insert(path.clone(), Arc::clone(&node));
            found.durable_names.insert(path, node);
        }
        Self(Arc::new(Mutex::new(found)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn fate(&self, call: Call, name: &str) -> io::Result<Fate> {
        // A hook may wait.
        let hook = self.state().hook.clone();
        let fate = hook.map(|hook| hook(call, name));
        let mut state = self.state();
        if call != Call::Read {
            state.num_changing_calls += 1;
        }
        if state.power_ends_at.is_some_and(|end| state.num_changing_calls > end) {
            return Err(io::Error::other("the power is gone"));
        }
        match fate.unwrap_or_default() {
            Fate::Fails(kind) => Err(kind.into()),
            Fate::Panics => {
                drop(state);
                panic!("a worker that is told to");
            }
            fate => Ok(fate),
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sim")
    }
}

impl Files for Sim {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.fate(Call::Create, &name_of(path))?;
        let node = Node::default();
        let mut state = self.state();
        state.names.insert(path.to_path_buf(), Arc::clone(&node));
        state.changes.push(Change::Set(path.to_path_buf(), Arc::clone(&node)));
        Ok(Box::new(SimFile { sim: self.clone(), name: name_of(path), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let node = self.state().names.get(path).cloned().ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { sim: self.clone(), name: name_of(path), node }))
    }

    fn names(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(Self::names(self))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fate(Call::Rename, &name_of(to))?;
        let mut state = self.state();
        let node = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), Arc::clone(&node));
        state.changes.push(Change::Move(from.to_path_buf(), to.to_path_buf(), node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.fate(Call::Remove, &name_of(path))?;
        let mut state = self.state();
        state.names.remove(path).ok_or(ErrorKind::NotFound)?;
        state.changes.push(Change::Unset(path.to_path_buf()));
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        if self.fate(Call::SyncFolder, "")? != Fate::Lies {
            let mut state = self.state();
            state.durable_names = state.names.clone();
            state.changes.clear();
        }
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_locked, true) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Unlock(self.clone())))
    }
}

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl File for SimFile {
    fn num_bytes(&self) -> io::Result<u64> {
        Ok(self.node.lock().unwrap().now.len() as u64)
    }

    fn read_at(&self, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let fate = self.sim.fate(Call::Read, &self.name)?;
        let most = if let Fate::Short(most) = fate { most } else { usize::MAX };
        let data = self.node.lock().unwrap();
        let from = data.now.get(offset as usize..).unwrap_or_default();
        let mut from = &from[..from.len().min(most)];
        let mut num_bytes = 0;
        for part in parts.iter_mut() {
            let (now, later) = from.split_at(part.len().min(from.len()));
            part[..now.len()].copy_from_slice(now);
            (from, num_bytes) = (later, num_bytes + now.len());
        }
        if let Fate::Flips(bit) = fate {
            let mut bytes = parts.iter_mut().flat_map(|part| part.iter_mut());
            *bytes.nth(bit / 8).expect("a bit of what is read") ^= 1 << (bit % 8);
        }
        Ok(num_bytes)
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let fate = self.sim.fate(Call::Write, &self.name)?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let len = bytes.len();
        match fate {
            Fate::Short(most) | Fate::FailsAfter(most, _) => bytes.truncate(most),
            Fate::Lies => return Ok(len),
            _ => {}
        }
        let mut data = self.node.lock().unwrap();
        write(&mut data.now, offset as usize, &bytes);
        let num_bytes = bytes.len();
        data.unsynced.push((offset as usize, bytes));
        if let Fate::FailsAfter(_, kind) = fate { Err(kind.into()) } else { Ok(num_bytes) }
    }

    fn sync(&self) -> io::Result<()> {
        if self.sim.fate(Call::Sync, &self.name)? != Fate::Lies {
            let mut data = self.node.lock().unwrap();
            data.durable = data.now.clone();
            data.unsynced.clear();
        }
        Ok(())
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    file.resize(file.len().max(end), 0);
    file[offset..end].copy_from_slice(bytes);
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
