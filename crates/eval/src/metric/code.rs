//! How alike two lines of code are.

use std::collections::HashMap;

/// From this many characters of the second text on, those that are frequent in it begin no matching block.
const POPULAR_FROM: usize = 200;

/// How alike the first line of code in `reply` and `reference` are, in whole percent over 100.
pub(super) fn similarity(reply: &str, reference: &str) -> f64 {
    let line = code_line(reply);
    if line == reference {
        return 1.0;
    }
    // Whole percent, halves to the even one.
    (100.0 * ratio(line, reference)).round_ties_even() / 100.0
}

/// The first line that holds none of the marks of comments and of fenced code; empty where all do.
fn code_line(reply: &str) -> &str {
    let is_code = |line: &&str| !["`", "#", "//"].iter().any(|mark| line.contains(mark));
    reply.trim_start_matches('\n').split('\n').find(is_code).unwrap_or_default()
}

/// Twice the characters in matching blocks, over all characters; 0 for two empty texts.
///
/// The longest block that both have, the first of them in `a` and then in `b`, splits both; what is left of it and what
/// is right of it is searched in the same way (Ratcliff and Metzener, "Pattern matching: the gestalt approach", Dr.
/// Dobb's Journal 1988, as in Python's `difflib.SequenceMatcher`).
fn ratio(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let starts = block_starts(&b);
    let mut num_matched = 0;
    let mut open = vec![Range { a: (0, a.len()), b: (0, b.len()) }];
    while let Some(range) = open.pop() {
        let block = longest_block(&a, &b, &starts, &range);
        if block.len == 0 {
            continue;
        }
        num_matched += block.len;
        open.push(Range { a: (range.a.0, block.a), b: (range.b.0, block.b) });
        open.push(Range {
            a: (block.a + block.len, range.a.1),
            b: (block.b + block.len, range.b.1),
        });
    }
    let num_chars = a.len() + b.len();
    if num_chars == 0 { 0.0 } else { 2.0 * num_matched as f64 / num_chars as f64 }
}

/// Characters of both texts that are yet to be matched: first and end, exclusive.
struct Range {
    a: (usize, usize),
    b: (usize, usize),
}

/// Characters that both texts have: where they begin, and how many they are.
struct Block {
    a: usize,
    b: usize,
    len: usize,
}

/// Where each character stands in `b`, in order. Of a long text, without those that are more than one in a hundred, and
/// one more.
fn block_starts(b: &[char]) -> HashMap<char, Vec<usize>> {
    let mut starts: HashMap<char, Vec<usize>> = HashMap::new();
    for (at, c) in b.iter().enumerate() {
        starts.entry(*c).or_default().push(at);
    }
    if b.len() >= POPULAR_FROM {
        starts.retain(|_, places| places.len() <= b.len() / 100 + 1);
    }
    starts
}

/// The longest block in the range, made longer at both ends by characters that begin none; of length 0 where there is
/// none.
fn longest_block(
    a: &[char],
    b: &[char],
    starts: &HashMap<char, Vec<usize>>,
    range: &Range,
) -> Block {
    let mut block = Block { a: range.a.0, b: range.b.0, len: 0 };
    // Length of the block that ends with the character before, by where it ends in `b`.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for (i, c) in (range.a.0..).zip(&a[range.a.0..range.a.1]) {
        let mut longer = HashMap::new();
        let places = starts.get(c).map_or(&[][..], Vec::as_slice);
        for &j in places.iter().filter(|j| (range.b.0..range.b.1).contains(j)) {
            let len = j.checked_sub(1).and_then(|before| lengths.get(&before)).map_or(1, |n| n + 1);
            longer.insert(j, len);
            if len > block.len {
                block = Block { a: i + 1 - len, b: j + 1 - len, len };
            }
        }
        lengths = longer;
    }
    while block.a > range.a.0 && block.b > range.b.0 && a[block.a - 1] == b[block.b - 1] {
        block = Block { a: block.a - 1, b: block.b - 1, len: block.len + 1 };
    }
    let ends = |block: &Block| (block.a + block.len, block.b + block.len);
    while ends(&block).0 < range.a.1
        && ends(&block).1 < range.b.1
        && a[ends(&block).0] == b[ends(&block).1]
    {
        block.len += 1;
    }
    block
}
