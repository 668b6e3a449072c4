//! What options are refused, and the page that tables go into.

use clap::Parser;

use super::*;

/// What runs are put into.
const SECTIONS: [&str; 5] =
    [SUITE, "speed-q8a8", "speed-llama3-8b", "speed-llama3-8b-q8a8", "speed-profile"];

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: SpeedArgs,
}

fn parse(words: &[&str]) -> Result<SpeedArgs, clap::Error> {
    Program::try_parse_from([&["bench"], words].concat()).map(|program| program.arguments)
}

#[test]
fn parts_are_chosen_and_contradictions_refused() {
    let arguments = parse(&["long", "--tiles", "plain"]).expect("they are valid");
    assert_eq!((arguments.parts, arguments.tiles), (vec![Part::Long], vec![Tiling::Plain]));
    let both = parse(&[]).expect("it is valid").tiles;
    assert_eq!(both, [Tiling::Near, Tiling::Plain]);
    for wrong in [
        &["prefill"][..],
        &["--test", "--check"],
        &["--test", "--peers"],
        &["--shape", "llama4"],
        &["--shape", "llama3-8b", "--tiles=near"],
        &["--rounds=0"],
        &["--peers-folder=x"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn options_that_would_lose_work_are_refused() {
    let checked = |words: &[&str]| check(&parse(words).expect("they are valid"));
    for wrong in [
        &["--long=100"][..],
        &["--program=no-such-program"],
        &["--splice"],
        &["--peers", "--splice", "--contexts=512"],
        &["contexts", "--peers", "--splice"],
        &["--peers", "--splice", "--shape=llama3-8b", "--rounds=1"],
        &["--peers", "--splice", "--shape=llama3-8b", "--memory=4"],
        &["--peers", "--splice", "--shape=llama3-8b", "--compute=f32"],
        &["--peers", "--splice", "--program=Cargo.toml", "--tiles=plain"],
        &["profile", "--check"],
        &["profile", "contexts"],
    ] {
        assert!(checked(wrong).is_err(), "{wrong:?}");
    }
    for right in [
        &[][..],
        &["--peers", "--splice", "--program=Cargo.toml"],
        &["--peers", "--splice", "--shape=llama3-8b", "--rounds=2"],
        &["--peers", "--splice", "--compute=q8a8", "contexts"],
        &["profile", "--splice"],
    ] {
        assert!(checked(right).is_ok(), "{right:?}");
    }
}

#[test]
fn what_is_not_there_is_told_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("it is text");
    let told = |words: &[&str]| {
        let arguments = parse(&[words, &["--out", out]].concat()).expect("it is valid");
        run(&arguments).expect_err("it is not there").to_string()
    };
    assert!(told(&["--peers", "--peers-folder", out]).contains("cargo xtask fetch --peers"));
    assert!(told(&["--model", "no-such-file", "--corpus", "x"]).contains("--corpus"));
    assert!(told(&["long", "--splice"]).contains("--splice puts in whole runs"));
    assert!(told(&["long", "--shape", "llama3-8b"]).contains("--shape"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
}

#[test]
fn the_page_has_its_marks_and_a_section_without_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("page.md");
    std::fs::copy(page_path(), &copy).expect("it is there");
    for name in SECTIONS {
        page::splice(&copy, name, "| x |").expect(name);
    }
    let told = page::splice(&copy, "speed-of-others", "| x |").expect_err("there are none");
    assert!(told.to_string().contains("no marks for `speed-of-others`"), "{told}");
    let page = std::fs::read_to_string(&copy).expect("it is there");
    assert_eq!(page.matches("| x |").count(), SECTIONS.len());
}

#[test]
fn a_run_has_a_section_of_its_own() {
    let section = |words: &[&str]| parse(words).expect("they are valid").section();
    let sections = [
        section(&[]),
        section(&["contexts", "--compute=q8a8"]),
        section(&["--shape=llama3-8b"]),
        section(&["--shape=llama3-8b", "--compute=q8a8"]),
    ];
    assert_eq!(sections, SECTIONS[..4]);
}

#[test]
fn the_page_has_the_tables_that_commands_print() {
    let page = std::fs::read_to_string(page_path()).expect("it is there");
    let record = Record::new(&Environment::detect(Level::SCALAR, 2));
    for name in &SECTIONS[..4] {
        let (_, section) = page.split_once(&format!("<!-- begin: {name} -->")).expect(name);
        let (section, _) = section.split_once(&format!("<!-- end: {name} -->")).expect(name);
        for title in tables::titles(&record) {
            assert_eq!(section.matches(&format!("### {title}\n")).count(), 1, "{name}: {title}");
        }
    }
    let kernels = instructions::kept().expect("they are kept").markdown();
    assert!(page.contains(&kernels), "{kernels}");
}
