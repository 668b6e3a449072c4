// What the search for a head's selection has found so far, and the rows of scores that it is made of.
//
// A weight's bits, read as an integer, order weights as their values do: they are the key by which tokens are ranked, and
// the search finds the key of the last token taken ten or twelve bits at a time.

// The scores of a query head: `num_tokens` from `start` on.
struct ScoreRow {
    start: u32,
    num_tokens: u32,
}

struct Choice {
    // Over all tokens, resident and coded; natural logarithm.
    lse: f32,
    // Mass of the coded tokens that have to be taken.
    target_mass: f32,
    // The key of the last token taken, as far as it is known.
    key: u32,
    // Tokens of larger keys, and their mass.
    above: u32,
    mass: f32,
    // Tokens of that very key to be taken, the first ones.
    ties: u32,
    is_found: u32,
    unused: u32,
}

// Tokens of a chunk, and of a thread, which has as many that follow each other.
const CHUNK: u32 = 4096u;
const GROUP: u32 = 256u;
const OWN: u32 = CHUNK / GROUP;

fn key_of(score: f32, lse: f32) -> u32 {
    return bitcast<u32>(exp(score - lse));
}
