//! Programs of others, measured by a process of their own that answers a request line by line.
//!
//! The process is the Python package in `crates/bench/peers/python`, which `cargo xtask fetch --peers` installs
//! into a virtual environment; its `protocol` module says the same as the types here.

mod protocol;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

pub use protocol::{
    PeerInfo, PeerLine, PeerQuality, PeerRequest, PeerSpeed, PeerSpeedRequest, PeerWindow,
};

pub use rows::{PeerSetting, evaluate_peer};

/// Lines of a process's words that an error repeats.
const TAIL_LINES: usize = 20;

/// A program that caches are measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEngine {
    /// llama.cpp, whose caches are `f16`, `q8_0` and `q4_0`.
    LlamaCpp,
    /// NVIDIA's kvpress on transformers, whose caches are `full` and `snapkv`, `pyramidkv`, `tova`,
    /// `expected-attention` and `streaming-llm` with the share of tokens that they keep, as in `snapkv:25%`.
    Kvpress,
}

impl PeerEngine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::LlamaCpp, Self::Kvpress];

    /// The caches that ours are held against, the full one first.
    #[must_use]
    pub fn caches(self) -> &'static [&'static str] {
        match self {
            Self::LlamaCpp => &["f16", "q8_0", "q4_0"],
            Self::Kvpress => &[
                "full",
                "snapkv:25%",
                "snapkv:12.5%",
                "pyramidkv:25%",
                "pyramidkv:12.5%",
                "tova:25%",
                "tova:12.5%",
                "expected-attention:25%",
                "expected-attention:12.5%",
                "streaming-llm:25%",
                "streaming-llm:12.5%",
            ],
        }
    }

    /// The Python module that measures it.
    fn module(self) -> &'static str {
        match self {
            Self::LlamaCpp => "heterokv_peers.llama_cpp",
            Self::Kvpress => "heterokv_peers.kvpress",
        }
    }
}

impl fmt::Display for PeerEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Kvpress => "kvpress",
        })
    }
}

/// What can go wrong with a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// There is no such environment.
    #[error(
        "the peers are not installed in {}; run `cargo xtask fetch --peers`, or give --peers-folder",
        venv.display()
    )]
    NotInstalled {
        /// The virtual environment that was looked for.
        venv: PathBuf,
    },
    /// The process cannot be started or talked to.
    #[error("cannot run {engine} by {}", python.display())]
    Io {
        /// The program.
        engine: PeerEngine,
        /// The interpreter.
        python: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A request that cannot be written, say for a path that is not Unicode.
    #[error("the request to {engine} cannot be written as JSON")]
    Request {
        /// The program.
        engine: PeerEngine,
        /// Why.
        source: serde_json::Error,
    },
    /// The peer says that it cannot serve the request.
    #[error("{engine} refuses: {message}")]
    Refused {
        /// The program.
        engine: PeerEngine,
        /// Its words.
        message: String,
    },
    /// A line that is not of the protocol.
    #[error(
        "line {line} from {engine} is not of the protocol: {reason}; run `cargo xtask fetch --peers`"
    )]
    Malformed {
        /// The program.
        engine: PeerEngine,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The process ended badly.
    #[error("{engine} failed ({status}); its last words:\n{tail}")]
    Failed {
        /// The program.
        engine: PeerEngine,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of what it wrote for people.
        tail: String,
    },
    /// The process ended well and early.
    #[error(
        "{engine} answered with {received} of {expected} lines and ended; its last words:\n{tail}"
    )]
    Incomplete {
        /// The program.
        engine: PeerEngine,
        /// Lines that came.
        received: usize,
        /// Lines that the request makes.
        expected: usize,
        /// The last lines of what it wrote for people.
        tail: String,
    },
}

/// Left by an installation that came to its end: what it was made from. `cargo xtask fetch --peers` writes it.
const STAMP: &str = "heterokv-peers.stamp";

/// Peers that are installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledPeers {
    /// The interpreter of their virtual environment.
    pub python: PathBuf,
    /// What tells the installation from others.
    pub build: String,
}

impl InstalledPeers {
    /// Those of a virtual environment, installed to the end.
    ///
    /// # Errors
    /// [`PeerError::NotInstalled`].
    pub fn at(venv: &Path) -> Result<Self, PeerError> {
        let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        let stamp = std::fs::read_to_string(venv.join(STAMP)).unwrap_or_default();
        let build = stamp.trim().to_owned();
        if !python.is_file() || build.is_empty() {
            return Err(PeerError::NotInstalled { venv: venv.to_owned() });
        }
        Ok(Self { python, build })
    }
}

/// A peer at work: an iterator over the lines of its answer, each there as soon as it is measured.
///
/// The first line is [`PeerLine::Engine`]; the iterator ends after the first error. A peer that is dropped early
/// is killed.
#[derive(Debug)]
pub struct Peer {
    engine: PeerEngine,
    python: PathBuf,
    request: PeerRequest,
    child: Child,
    answer: BufReader<ChildStdout>,
    /// Reads what is for people, to its end; its result is the last lines.
    listener: Option<JoinHandle<VecDeque<String>>>,
    received: usize,
    is_done: bool,
}

impl Peer {
    /// Starts the engine's process in the virtual environment and hands it the request; `progress` hears each
    /// line that it writes for people, on another thread.
    ///
    /// # Errors
    /// [`PeerError::NotInstalled`], [`PeerError::Io`] and [`PeerError::Request`]; what the peer itself finds
    /// wrong comes as its first line.
    pub fn start(
        venv: &Path,
        engine: PeerEngine,
        request: PeerRequest,
        progress: impl FnMut(&str) + Send + 'static,
    ) -> Result<Self, PeerError> {
        let InstalledPeers { python, .. } = InstalledPeers::at(venv)?;
        let words =
            serde_json::to_vec(&request).map_err(|source| PeerError::Request { engine, source })?;
        let io = |source| PeerError::Io { engine, python: python.clone(), source };
        let no_pipe = || io(std::io::Error::other("a stream is not piped"));
        let mut child = Command::new(&python)
            .args(["-m", engine.module()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io)?;
        let answer = BufReader::new(child.stdout.take().ok_or_else(no_pipe)?);
        let listener = Some(listen(child.stderr.take().ok_or_else(no_pipe)?, progress));
        let mut stdin = child.stdin.take().ok_or_else(no_pipe)?;
        let mut peer = Self {
            engine,
            python: python.clone(),
            request,
            child,
            answer,
            listener,
            received: 0,
            is_done: false,
        };
        // A process that dies before it has read all says more by its end than a broken pipe does.
        if let Err(error) = stdin.write_all(&words)
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(io(error));
        }
        drop(stdin);
        peer.request.windows.iter_mut().for_each(PeerWindow::forget_context);
        Ok(peer)
    }

    fn read_line(&mut self) -> Result<Option<PeerLine>, PeerError> {
        let mut text = Vec::new();
        let num_bytes = self.answer.read_until(b'\n', &mut text).map_err(|e| self.io(e))?;
        if num_bytes == 0 {
            return self.end().map(|()| None);
        }
        let line = self.received + 1;
        let parsed = PeerLine::parse(&text, line == 1, &self.request)
            .map_err(|reason| PeerError::Malformed { engine: self.engine, line, reason })?;
        self.received = line;
        match parsed {
            protocol::Answer::Line(line) => Ok(Some(line)),
            protocol::Answer::Refusal(message) => {
                Err(PeerError::Refused { engine: self.engine, message })
            }
        }
    }

    /// What the end of the answer means.
    fn end(&mut self) -> Result<(), PeerError> {
        let status = self.child.wait().map_err(|e| self.io(e))?;
        // The listener ends when the pipe does; it has nothing of its own to panic on.
        let tail = self.listener.take().and_then(|listener| listener.join().ok());
        let tail = tail.map_or_else(String::new, |lines| Vec::from(lines).join("\n"));
        let engine = self.engine;
        let (received, expected) = (self.received, self.request.num_lines());
        if !status.success() {
            Err(PeerError::Failed { engine, status, tail })
        } else if received != expected {
            Err(PeerError::Incomplete { engine, received, expected, tail })
        } else {
            Ok(())
        }
    }

    fn io(&self, source: std::io::Error) -> PeerError {
        PeerError::Io { engine: self.engine, python: self.python.clone(), source }
    }
}

impl Iterator for Peer {
    type Item = Result<PeerLine, PeerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.read_line().transpose();
        self.is_done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Of a process that has ended already there is nothing to kill, and nobody to tell of anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes on the lines of a stream, on a thread of its own, and keeps the last ones.
fn listen(
    stream: impl Read + Send + 'static,
    mut progress: impl FnMut(&str) + Send + 'static,
) -> JoinHandle<VecDeque<String>> {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let (mut tail, mut bytes) = (VecDeque::new(), Vec::new());
        while stream.read_until(b'\n', &mut bytes).is_ok_and(|num_bytes| num_bytes > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            progress(&line);
            tail.push_back(line);
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        }
        tail
    })
}
