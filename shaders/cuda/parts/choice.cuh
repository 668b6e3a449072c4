// What the search for a head's selection has found so far, and the rows of scores that it is made of.
//
// A weight's bits, read as an integer, order weights as their values do: they are the key by which tokens are ranked, and
// the search finds the key of the last token taken ten or twelve bits at a time.

// The scores of a query head: `num_tokens` from `start` on.
struct ScoreRow {
    unsigned start;
    unsigned num_tokens;
};

struct Choice {
    // Over all tokens, resident and coded; natural logarithm.
    float lse;
    // Mass of the coded tokens that have to be taken.
    float target_mass;
    // The key of the last token taken, as far as it is known.
    unsigned key;
    // Tokens of larger keys, and their mass.
    unsigned above;
    float mass;
    // Tokens of that very key to be taken, the first ones.
    unsigned ties;
    unsigned is_found;
    unsigned unused;
};

// Tokens of a chunk, and of a thread, which has as many that follow each other.
constexpr unsigned CHUNK = 4096;
constexpr unsigned GROUP = 256;
constexpr unsigned OWN = CHUNK / GROUP;

static __device__ unsigned key_of(float score, float lse)
{
    return __float_as_uint(expf(score - lse));
}
