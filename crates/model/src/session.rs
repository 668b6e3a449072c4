//! Sessions: a text that was read, in a folder of its own, for any later process to go on from.
//!
//! A session is a [saved cache](heterokv_cache::SavedCache) and, beside it, what belongs to the sequence and not to the
//! cache: which model read it, the ids of its tokens, and the last token's hidden state, from which the next token comes.
//! Beside the cache lie the length of a header (4 bytes, little-endian), the header in JSON, the ids (u32) and the hidden
//! state (f32).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heterokv_cache::{
    CacheConfig, DiskOptions, KvCache, KvShape, Level, OsFiles, Profile, SavedCache, Store,
    StoreError, StoreOptions,
};
use serde::{Deserialize, Serialize};

use crate::{Checkpoint, Error, ModelConfig, Result};

/// What the cache of a session is saved under.
const NAME: &str = "session";

/// Version of what lies beside the cache.
const VERSION: u32 = 1;

/// A folder with a session, or for one; no other process uses it as long as this and what is made of it live.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    store: Store,
    model: SessionModel,
    saved: Option<Saved>,
}

/// A cache that holds the beginning of a prompt, and the hidden state of its last token.
#[derive(Debug)]
pub struct Resumed<C> {
    /// The cache.
    pub cache: C,
    /// Tokens of the prompt that it holds.
    pub num_tokens: usize,
    /// `[hidden_size]`; empty where the last token's is not known, and there are further tokens to read.
    pub(crate) hidden: Vec<f32>,
}

impl<C> Resumed<C> {
    /// A cache that holds nothing.
    #[must_use]
    pub fn empty(cache: C) -> Self {
        Self { cache, num_tokens: 0, hidden: Vec::new() }
    }

    /// The same with another cache in the place of this one.
    ///
    /// # Errors
    /// What `change` fails with.
    pub fn try_map<D, E>(self, change: impl FnOnce(C) -> Result<D, E>) -> Result<Resumed<D>, E> {
        let Self { cache, num_tokens, hidden } = self;
        Ok(Resumed { cache: change(cache)?, num_tokens, hidden })
    }
}

/// Which model a session is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SessionModel {
    fingerprint: String,
    /// The configuration in words, without RoPE.
    architecture: String,
    rope: String,
}

/// What was found in the folder.
#[derive(Debug)]
struct Saved {
    cache: SavedCache,
    tokens: Vec<u32>,
    hidden: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    #[serde(flatten)]
    model: SessionModel,
    num_tokens: usize,
    hidden_size: usize,
}

/// The one field of every version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Session {
    /// Opens a folder, makes it where there is none, and holds the session in it, if there is one, against a model and a
    /// cache. Rows of the host go to the folder beyond `ram_budget_bytes`, and are read from it as `files` say.
    ///
    /// # Errors
    /// [`Error::SessionFolder`] for what is no folder for a session, and [`Error::Session`] for a session of something
    /// else, one that is damaged, and a folder that cannot be used; as [`CacheConfig::check_saved`].
    pub fn open(
        folder: &Path,
        checkpoint: &Checkpoint,
        shape: &KvShape,
        config: &CacheConfig,
        ram_budget_bytes: usize,
        files: OsFiles,
    ) -> Result<Self> {
        config.check_saved()?;
        prepare(folder)?;
        let model = SessionModel::of(checkpoint);
        let options = StoreOptions {
            shape: config.store_shape(shape),
            ram_budget_bytes,
            disk: Some(DiskOptions {
                files: Arc::new(files),
                ..DiskOptions::new(folder, model.fingerprint.as_str())
            }),
        };
        let store = Store::open(options).map_err(|error| match &error {
            StoreError::Io { action: "lock", source, .. }
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                folder_error(folder, "another process uses it; wait for its end")
            }
            _ => in_session(folder, error.into()),
        })?;
        let mut session = Self { folder: folder.to_owned(), store, model, saved: None };
        if session.store.saved_names().iter().any(|name| name == NAME) {
            let saved = session.read(checkpoint.config(), shape, config);
            session.saved = Some(saved.map_err(|error| session.error(error))?);
        }
        Ok(session)
    }

    fn read(
        &self,
        model: &ModelConfig,
        shape: &KvShape,
        config: &CacheConfig,
    ) -> heterokv_cache::Result<Saved> {
        let cache = SavedCache::open(&self.store, NAME)?;
        let (found, tokens, hidden) = parse(cache.companion())?;
        self.model.check(&found)?;
        cache.check(shape, config)?;
        if tokens.len() != cache.num_tokens() {
            return Err(damaged("it has not as many tokens as its cache"));
        }
        if tokens.iter().any(|&token| token as usize >= model.vocab_size) {
            return Err(damaged("a token is none of the vocabulary"));
        }
        if hidden.len() != model.hidden_size || hidden.iter().any(|x| !x.is_finite()) {
            return Err(damaged("its hidden state is none of the model's"));
        }
        Ok(Saved { cache, tokens, hidden })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the session has all of a prompt: to read it adds nothing.
    #[must_use]
    pub fn has_all_of(&self, prompt: &[u32]) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.tokens.starts_with(prompt))
    }

    /// The most tokens of a prompt that the session has.
    ///
    /// # Errors
    /// [`Error::OtherText`] where more of the session would be cut off than kept.
    pub fn found(&self, prompt: &[u32]) -> Result<usize> {
        self.saved.as_ref().map_or(Ok(0), |saved| self.keep(&saved.tokens, prompt))
    }

    /// A cache that holds the beginning of `prompt` as far as the session has it; an empty one where it has nothing. Where
    /// the session goes on differently, its cache is [cut](KvCache::truncate), so that a few tokens more may have to be
    /// read. What lies in the folder stays until something else is saved.
    ///
    /// # Errors
    /// As [`found`](Self::found), [`SavedCache::load`] and [`KvCache::in_store`].
    pub fn resume(
        &self,
        prompt: &[u32],
        (shape, config): (KvShape, CacheConfig),
        level: Level,
        profile: Option<&Profile>,
    ) -> Result<Resumed<KvCache>> {
        let keep = self.found(prompt)?;
        if let Some(saved) = &self.saved {
            let cache = saved.cache.load(shape, config.clone(), level, profile);
            let mut cache = cache.map_err(|error| self.error(error))?;
            if keep == saved.tokens.len() {
                return Ok(Resumed { cache, num_tokens: keep, hidden: saved.hidden.clone() });
            }
            let num_tokens = cache.truncate(keep);
            if num_tokens > 0 {
                return Ok(Resumed { cache, num_tokens, hidden: Vec::new() });
            }
        }
        let cache = KvCache::in_store(shape, config, level, profile, &self.store)?;
        Ok(Resumed::empty(cache))
    }

    /// How many of the session's tokens a prompt goes on from.
    fn keep(&self, tokens: &[u32], prompt: &[u32]) -> Result<usize> {
        let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // Many texts begin with the same few tokens.
        if common < tokens.len().div_ceil(2) {
            let (path, num_tokens) = (self.folder.clone(), tokens.len());
            return Err(Error::OtherText { path, common, num_tokens });
        }
        // What follows a token is known of the last one alone.
        let is_within = common == prompt.len() && common < tokens.len();
        Ok(if is_within { common.saturating_sub(1) } else { common })
    }

    /// Saves a cache that holds `tokens`, the last of which has the `hidden` state. From then on, the session is this one.
    ///
    /// # Errors
    /// [`Error::OtherSession`] for a cache whose rows are not in this session's folder, and [`Error::Session`].
    pub(crate) fn save(
        &mut self,
        cache: &mut KvCache,
        tokens: &[u32],
        hidden: &[f32],
    ) -> Result<()> {
        if !cache.is_in(&self.store) {
            return Err(Error::OtherSession { path: self.folder.clone() });
        }
        let header = Header {
            version: VERSION,
            model: self.model.clone(),
            num_tokens: tokens.len(),
            hidden_size: hidden.len(),
        };
        let header = serde_json::to_vec(&header).expect("words and numbers are JSON");
        let mut companion = (header.len() as u32).to_le_bytes().to_vec();
        companion.extend(header);
        companion.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        companion.extend(hidden.iter().flat_map(|x| x.to_le_bytes()));
        let saved = cache.save(NAME, &companion);
        let saved = saved.and_then(|()| SavedCache::open(&self.store, NAME));
        let cache = saved.map_err(|error| self.error(error))?;
        self.saved = Some(Saved { cache, tokens: tokens.to_vec(), hidden: hidden.to_vec() });
        Ok(())
    }

    fn error(&self, error: heterokv_cache::Error) -> Error {
        in_session(&self.folder, error)
    }
}

impl SessionModel {
    fn of(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        Self {
            fingerprint: checkpoint.fingerprint().to_string(),
            architecture: format!(
                "{} of {} layers of {}, {} query and {} KV heads of {}, {} tokens",
                config.architecture.name(),
                config.num_layers,
                config.hidden_size,
                config.num_qo_heads,
                config.num_kv_heads,
                config.head_dim,
                config.vocab_size
            ),
            rope: config.rope.to_string(),
        }
    }

    /// Refuses a session of another model than this one, by the first thing in which they differ.
    fn check(&self, found: &Self) -> heterokv_cache::Result<()> {
        if self.fingerprint == found.fingerprint {
            return Ok(());
        }
        let fields = [
            ("a model", &found.architecture, &self.architecture),
            ("RoPE", &found.rope, &self.rope),
            ("a model", &found.fingerprint, &self.fingerprint),
        ];
        let differing = fields.into_iter().find(|(_, found, expected)| found != expected);
        differing.map_or(Ok(()), |(field, found, expected)| Err(other(field, found, expected)))
    }
}

/// Reads what lies beside the cache. Nothing is allocated beyond a few times the length of the bytes.
fn parse(bytes: &[u8]) -> heterokv_cache::Result<(SessionModel, Vec<u32>, Vec<f32>)> {
    let too_short = || damaged("what lies beside its cache is too short");
    let (len, rest) = bytes.split_first_chunk().ok_or_else(too_short)?;
    let len = u32::from_le_bytes(*len) as usize;
    let (header, rest) = rest.split_at_checked(len).ok_or_else(too_short)?;
    let in_words = |error: serde_json::Error| damaged(&error.to_string());
    let Versioned { version } = serde_json::from_slice(header).map_err(in_words)?;
    if version != VERSION {
        return Err(other("version", &version.to_string(), &VERSION.to_string()));
    }
    let header: Header = serde_json::from_slice(header).map_err(in_words)?;
    let num_bytes = header.num_tokens.checked_add(header.hidden_size);
    let num_bytes = num_bytes.and_then(|words| words.checked_mul(4));
    if num_bytes != Some(rest.len()) {
        return Err(damaged("what lies beside its cache is not as long as its header says"));
    }
    let (tokens, hidden) = rest.as_chunks::<4>().0.split_at(header.num_tokens);
    let tokens = tokens.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let hidden = hidden.iter().map(|word| f32::from_le_bytes(*word)).collect();
    Ok((header.model, tokens, hidden))
}

/// Makes sure that there is a folder that can be a session's.
fn prepare(folder: &Path) -> Result<()> {
    let failed = |source| Error::Io { path: folder.to_owned(), source };
    match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::create_dir(folder).and_then(|()| sync_parent(folder));
            return made.map_err(|source| Error::MakeFolder { path: folder.to_owned(), source });
        }
        found => {
            if !found.map_err(failed)?.is_dir() {
                return Err(folder_error(folder, "it is not a folder; give another path"));
            }
        }
    }
    let (mut is_foreign, mut is_empty, mut has_lock) = (false, true, false);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name.to_str().and_then(Store::saved_name) == Some(NAME) {
            return Ok(());
        }
        is_foreign |= !name.to_str().is_some_and(Store::makes_file);
        is_empty = false;
        has_lock |= name == Store::LOCK;
    }
    // Files that a store could have made are somebody else's where no store was.
    if is_foreign || !is_empty && !has_lock {
        let reason =
            "it holds other files and no session; give the path of a session, or a new one";
        return Err(folder_error(folder, reason));
    }
    Ok(())
}

/// Makes durable that a folder is there.
fn sync_parent(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Elsewhere a folder cannot be opened.
    if cfg!(unix) { fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all() } else { Ok(()) }
}

fn in_session(folder: &Path, source: heterokv_cache::Error) -> Error {
    Error::Session { path: folder.to_owned(), source }
}

fn folder_error(folder: &Path, reason: &'static str) -> Error {
    Error::SessionFolder { path: folder.to_owned(), reason }
}

fn damaged(reason: &str) -> heterokv_cache::Error {
    heterokv_cache::Error::DamagedSave { reason: reason.to_owned() }
}

fn other(field: &'static str, found: &str, expected: &str) -> heterokv_cache::Error {
    let (found, expected) = (found.to_owned(), expected.to_owned());
    heterokv_cache::Error::OtherSave { field, found, expected }
}
