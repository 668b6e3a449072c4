//! Real output of both runners, shortened, and what it comes to.

use super::*;

fn read(runner: Runner, text: &str) -> RunnerOutput {
    let mut output = RunnerOutput::of(runner);
    text.lines().for_each(|line| output.line(line));
    output
}

fn tally(num_passed: u64, num_failed: u64, num_skipped: u64) -> Tally {
    Tally { num_passed, num_failed, num_skipped, failed_tests: Vec::new() }
}

/// One of each: aborted, passed, announced on either stream, announced and failed, slow, timed out.
const NEXTEST: &str = "
    Starting 7 tests across 1 binary (1 test skipped)
     SIGABRT [   0.012s] (1/7) nx abort
  stdout ───

    running 1 test

    (test aborted with signal 6: SIGABRT)

        PASS [   0.012s] (2/7) nx ok
  stdout ───

    running 1 test
    seed 1
    test ok ... ok

    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s

        PASS [   0.011s] (3/7) nx announced_to_stdout
  stdout ───

    running 1 test
    SKIPPED: no model
    SKIPPED: no shared files either
    test announced_to_stdout ... ok

        PASS [   0.015s] (4/7) nx announced_to_stderr
  stderr ───
    SKIPPED: no model

        FAIL [   0.152s] (5/7) nx announced_and_failed
  stdout ───

    running 1 test
    SKIPPED: no model
    test announced_and_failed ... FAILED

        SLOW [>  2.000s] (───) nx hang
        SLOW [>  2.000s] (───) nx slow
        PASS [   3.020s] (6/7) nx slow
 TERMINATING [>  6.000s] (───) nx hang
     TIMEOUT [   6.012s] (7/7) nx hang
────────────
     Summary [   6.013s] 7 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 1 skipped
     SIGABRT [   0.012s] (1/7) nx abort
        FAIL [   0.152s] (5/7) nx announced_and_failed
     TIMEOUT [   6.012s] (7/7) nx hang
";

#[test]
fn nextest_output_is_counted_test_by_test() {
    let output = read(Runner::Nextest, NEXTEST);
    let failed = ["nx abort", "nx announced_and_failed", "nx hang"].map(String::from);
    assert_eq!(output.tally(), Some(Tally { failed_tests: failed.into(), ..tally(2, 3, 2) }));
    assert_eq!(output.reasons().len(), 3);
}

#[test]
fn nextest_summaries_of_one_and_of_no_test_are_read() {
    for (line, expected) in [
        ("     Summary [   0.001s] 1 test run: 1 passed, 4 skipped", tally(1, 0, 0)),
        ("     Summary [   0.000s] 0 tests run: 0 passed, 0 skipped", tally(0, 0, 0)),
        (
            "     Summary [   0.1s] 3/9 tests run: 2 passed (1 slow, 1 leaky), 1 failed",
            tally(2, 1, 0),
        ),
    ] {
        assert_eq!(read(Runner::Nextest, line).tally(), Some(expected), "{line}");
    }
}

/// Two binaries that hold a test of the same name; the second announces and fails.
const LIBTEST: &str = "
running 3 tests
test ignored ... ignored
test same ... ok
test plain ... ok

successes:

---- same stdout ----
SKIPPED: no model

successes:
    same
    plain

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test same ... FAILED

failures:

---- same stdout ----
SKIPPED: no model

failures:
    same

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s
";

#[test]
fn libtest_output_is_summed_over_its_binaries() {
    let output = read(Runner::Libtest, LIBTEST);
    let failed_tests = vec!["same".into()];
    assert_eq!(output.tally(), Some(Tally { failed_tests, ..tally(1, 1, 2) }));
}

#[test]
fn a_runner_that_died_before_its_summary_has_no_tally() {
    let cut = NEXTEST.split("Summary").next().unwrap_or_default();
    assert_eq!(read(Runner::Nextest, cut).tally(), None);
    assert_eq!(read(Runner::Libtest, "running 3 tests\nerror: test failed").tally(), None);
}

#[test]
fn an_announcement_outside_of_any_test_is_nobodys() {
    let output = read(
        Runner::Libtest,
        "SKIPPED: who says so?\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured",
    );
    assert_eq!(output.tally(), Some(tally(1, 0, 0)));
}

#[test]
fn the_closing_line_has_its_form() {
    let mut total = Tally::of_check(true);
    total += Tally::of_check(false);
    total += Tally::of_skip();
    assert_eq!(total.to_string(), "1 passed, 1 failed, 1 skipped");
    assert_eq!(total.num_tests(), 3);
}
