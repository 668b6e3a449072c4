// A warp: the threads that exchange registers.
//
// Every exchange here is between all lanes: kernels call from uniform control flow, and GROUP is whole warps.

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;
