//! A page in headless Chromium: what it says on its console, and what a probe sees in it.

use std::path::Path;
use std::process::{Command, Output};

use serde::Deserialize;

const PROBE: &str = include_str!("probe.js");

/// Names under which the browser is installed.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A browser that is installed.
pub(crate) struct Browser(&'static str);

/// What the probe saw.
#[derive(Debug, Deserialize)]
pub(crate) struct Found {
    /// Width of the page's window in CSS pixels.
    pub(crate) width: u32,
    pub(crate) num_texts: usize,
    /// Texts that leave their container or the window.
    pub(crate) overflowing: Vec<String>,
    /// Pairs of words in a picture that lie over one another.
    pub(crate) overlapping: Vec<String>,
    /// Height of the smallest word in a picture in CSS pixels; none where there is none.
    pub(crate) smallest_label: Option<f64>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) sorts: Vec<Sort>,
    pub(crate) num_charts: usize,
    /// Charts that say nothing to who does not see them.
    pub(crate) num_untitled: usize,
    pub(crate) headings: Vec<String>,
    /// Lines on the console.
    #[serde(skip)]
    pub(crate) console: Vec<String>,
}

/// A number in a table, as the page holds it.
#[derive(Debug, Deserialize)]
pub(crate) struct Cell {
    pub(crate) task: String,
    pub(crate) fingerprint: String,
    pub(crate) engine: Option<String>,
    pub(crate) cache: String,
    pub(crate) context: String,
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) low: Option<String>,
    pub(crate) high: Option<String>,
}

/// A column after its heading was pressed.
#[derive(Debug, Deserialize)]
pub(crate) struct Sort {
    pub(crate) heading: String,
    pub(crate) expected: String,
    /// What the heading says of the order.
    pub(crate) stated: Option<String>,
    /// Headings of the table that say that they are sorted by.
    pub(crate) others: usize,
    pub(crate) is_focused: bool,
    pub(crate) values: Vec<Option<String>>,
    pub(crate) texts: Vec<String>,
}

impl Browser {
    /// `None`, and a line that says so, where there is none.
    pub(crate) fn or_skip() -> Option<Self> {
        let runs = |program: &&&str| {
            let output = Command::new(program).arg("--version").output();
            output.is_ok_and(|output| output.status.success())
        };
        let found = PROGRAMS.iter().find(runs);
        if found.is_none() {
            println!("SKIPPED: no headless browser ({} is not installed)", PROGRAMS[0]);
        }
        found.map(|program| Self(program))
    }

    /// Opens the page in a window of that width, probes it and reads the console. A window of the browser itself
    /// cannot be narrower than 500 pixels, so the page is shown in a frame.
    pub(crate) fn look(&self, page: &str, width: u32) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = page.rsplit_once("</body>").expect("a page has a body");
        let probed = format!("{before}<script>{PROBE}</script></body>{after}");
        std::fs::write(folder.path().join("page.html"), probed).unwrap();
        let around = format!(
            r#"<!DOCTYPE html><body><script>
addEventListener("message", ({{ data }}) => {{ document.body.dataset.found = data; }});
</script><iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe></body>"#
        );
        std::fs::write(folder.path().join("around.html"), around).unwrap();
        let output = self.run(folder.path(), width);
        let dom = String::from_utf8(output.stdout).unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = dom.split_once("data-found=\"").and_then(|(_, rest)| rest.split_once('"'));
        let (found, _) = found.unwrap_or_else(|| panic!("the probe sent nothing:\n{log}\n{dom}"));
        let mut found: Found = serde_json::from_str(&decoded(found)).unwrap();
        found.console =
            log.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
        found
    }

    fn run(&self, folder: &Path, width: u32) -> Output {
        let page = folder.join("around.html");
        Command::new(self.0)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .args(["--enable-logging=stderr", "--virtual-time-budget=10000"])
            .arg(format!("--window-size={},1000", width + 100))
            .arg("--dump-dom")
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap()
    }
}

/// Reads what JavaScript's `encodeURIComponent` wrote.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex) {
            (b'%', Some(hex)) => {
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}
