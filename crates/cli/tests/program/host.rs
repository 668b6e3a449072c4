//! Values under a budget of host memory, on a disk below it.

use crate::bad_input::refuses;
use crate::fixture::{file, folder, json_of, model, prose, stdout_of};

/// A cache that reads all rows of the host in every step.
const CACHE: &str = "keys=int8-token,values=f16@host,select=none";

/// `generate` over a text of 900 tokens with these options.
fn generate<'a>(book: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let args = ["generate", "--model", model(), "--file", book, "--max-tokens", "20"];
    [&args[..], &["--cache", CACHE], options].concat()
}

fn disk() -> String {
    let disk = folder().join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    disk.to_str().unwrap().to_owned()
}

#[test]
fn values_on_a_disk_give_the_same_text() {
    let (book, disk) = (file("host.txt", &prose(900)), disk());
    let in_ram = json_of(&generate(&book, &["--json"])).remove(0);
    assert_eq!(in_ram["host_store"]["disk_pages"], 0);
    assert_eq!(in_ram["host_store"]["misses"], 0);
    for reads in ["pread", "mapped"] {
        let options = ["--host-memory", "40KiB", "--disk", &disk, "--disk-reads", reads, "--json"];
        let on_disk = json_of(&generate(&book, &options)).remove(0);
        assert_eq!(on_disk["tokens"], in_ram["tokens"], "{reads}");
        assert_eq!(on_disk["device"], in_ram["device"], "{reads}");
        let store = &on_disk["host_store"];
        let number = |name: &str| store[name].as_u64().unwrap();
        assert!(number("ram_peak_bytes") <= 40 << 10, "{store}");
        assert!(number("disk_pages") > 20 && number("read_bytes") > 200_000, "{store}");
        assert!(number("misses") > 0 && number("writes") > 0, "{store}");
        assert!(store["read_waits"]["count"].as_u64().unwrap() > 0, "{store}");
    }
    // Nothing stays of it.
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
}

#[test]
fn stats_show_the_tiers() {
    let (book, disk) = (file("tiers.txt", &prose(900)), disk());
    let shown =
        stdout_of(&generate(&book, &["--host-memory", "40KiB", "--disk", &disk, "--stats"]));
    for name in ["in RAM", "on disk", "read from disk", "pages of hints", "waits of readers"] {
        let is_there =
            shown.lines().any(|line| line.starts_with("host store:") && line.contains(name));
        assert!(is_there, "{name} is not in\n{shown}");
    }
    assert!(!stdout_of(&generate(&book, &["--stats"])).contains("on disk"));
}

#[test]
fn a_plan_says_what_of_the_rows_would_be_on_disk() {
    let plan = |memory: &str| {
        let args = ["plan", "--model", model(), "--context", "900", "--cache", CACHE, "--json"];
        json_of(&[&args[..], &["--host-memory", memory]].concat()).remove(0)
    };
    let planned = plan("40KiB");
    let bytes = |name: &str| planned["host"][name].as_u64().unwrap();
    assert_eq!(bytes("ram_bytes") + bytes("disk_bytes"), planned["host_bytes"].as_u64().unwrap());
    assert!(bytes("ram_bytes") <= 40 << 10 && bytes("disk_bytes") > 0);
    assert_eq!(plan("1GiB")["host"]["disk_bytes"], 0);
    assert_eq!(plan("0")["host"]["is_enough"], false);
}

#[test]
fn budgets_and_folders_that_will_not_do() {
    let (book, disk) = (file("refused.txt", &prose(900)), disk());
    for (options, parts) in [
        (&["--host-memory", "0", "--disk", &disk][..], &["--host-memory 0 B is too little"][..]),
        (
            &["--host-memory", "40KiB"],
            &["the host will hold", "name a folder for the rest by --disk"],
        ),
        (&["--host-memory", "40KiB", "--disk", "/nowhere"], &["cannot make a folder in /nowhere"]),
        (&["--host-memory", "40KiB", "--disk", &book], &["cannot make a folder in"]),
        (&["--host-memory", "40 potatoes"], &["expected a size such as 80GiB"]),
        (&["--disk", &disk], &["--host-memory <SIZE>"]),
        (
            &["--host-memory", "40KiB", "--disk", &disk, "--disk-reads", "x"],
            &["pread, mapped, direct"],
        ),
    ] {
        refuses(&generate(&book, options), parts);
    }
    let full = ["generate", "--model", model(), "--file", &book, "--cache", "full"];
    refuses(&[&full[..], &["--host-memory", "1GiB"]].concat(), &["full keeps nothing on the host"]);
}
