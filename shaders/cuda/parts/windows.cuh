// Integers of up to 4 bits on a grid of steps of eighths of an octave: 2^bits neighbours, whole or shifted by half a step.
//
// Stands on `octaves.cuh`.

// Widest codes of a window.
constexpr unsigned MAX_WINDOW_BITS = 4;

struct Window {
    // The step is 2^(exponent / 8), from -128 to 127.
    int exponent;
    // The middle of the values, in half steps, from -128 to 127.
    int centre;
};

static __device__ float step_of(int exponent)
{
    return octave_scale((unsigned)(exponent + 128));
}

// How many steps the code 0 stands for.
static __device__ float first_of(Window window, float last_code)
{
    return 0.5f * ((float)window.centre - last_code);
}

// As it is stored, in two bytes.
static __device__ unsigned window_bits(Window window)
{
    return (unsigned)(window.exponent + 128) | ((unsigned)window.centre & 0xff) << 8;
}

static __device__ Window window_of_bits(unsigned bits)
{
    return {(int)(bits & 0xff) - 128, (int)(signed char)(bits >> 8)};
}
