// Kernels in CUDA C++ on the CPU: what a test needs to see their arithmetic, their indices and their barriers.
//
// A block's threads are fibers of one thread, which change only where threads of a device may wait for each other: at
// barriers, and at exchanges within a warp. So a run is the same every time. It is no GPU: there is no memory model, and
// rounding is the host's.
//
// What a device lets pass is an error here, told on the error stream, with exit status 2:
// - threads that wait at different barriers, or at one that others never reach;
// - an exchange in which a lane that is named does not take part;
// - an access outside of the buffers, and a write to one that is only read;
// - results that depend on the order of threads and blocks: everything runs twice, in rising and in falling order.
// Shared memory holds NaNs when a block begins.
//
// A program is the text of a kernel between this file and `EMULATED(name)`. It reads from its input, in words of 4 bytes,
// the grid, the threads of a block, the number of words of `Params` and these, the number of buffers and each of these
// behind its length, and writes the buffers that are not const.

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <functional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};

static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a < b ? b : a; }

// A product that is rounded before it is added to.
static inline float __fmul_rn(float x, float y) { return x * y; }

static Index threadIdx, blockIdx, gridDim;

// The memory of `__shared__`, whose ends the linker knows.
extern "C" char __start_emulated_shared[] __attribute__((weak));
extern "C" char __stop_emulated_shared[] __attribute__((weak));

namespace emulation {

constexpr unsigned WARP = 32;
constexpr std::size_t STACK_BYTES = 64 << 10;
constexpr std::uint32_t POISON = 0x7fc0dead;

// Where a thread waits.
struct Site {
    const char* what;
    const char* file;
    int line;

    bool operator==(const Site& other) const
    {
        return line == other.line && std::strcmp(what, other.what) == 0 && std::strcmp(file, other.file) == 0;
    }
};

enum class State { Ready, AtBarrier, AtExchange, Done };

struct Thread {
    State state;
    bool has_begun;
    Site site;
    // Of an exchange: who takes part, what this lane gives, from which lane it takes, or whether all lanes vote.
    std::uint32_t mask, given, source, taken;
    bool is_vote;
    jmp_buf place;
    ucontext_t start;
};

static std::vector<Thread> threads;
static char* stacks;
static Thread* running;
static jmp_buf scheduler;
static std::function<void()> body;

[[noreturn]] static void fail(const char* what, const Site& site)
{
    std::fprintf(stderr, "%s: %s, line %d of %s, in block (%u, %u)\n", what, site.what, site.line, site.file, blockIdx.x,
                 blockIdx.y);
    std::_Exit(2);
}

[[noreturn]] static void fail(const char* what)
{
    std::fprintf(stderr, "%s\n", what);
    std::_Exit(2);
}

// The running thread waits until the scheduler goes on with it.
static void wait(State state, Site site)
{
    running->state = state;
    running->site = site;
    if (_setjmp(running->place) == 0) {
        _longjmp(scheduler, 1);
    }
}

static void run_body()
{
    body();
    running->state = State::Done;
    _longjmp(scheduler, 1);
}

static void resume(unsigned index)
{
    running = &threads[index];
    threadIdx = {index, 0, 0};
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (running->has_begun) {
        _longjmp(running->place, 1);
    }
    running->has_begun = true;
    setcontext(&running->start);
}

// Lets the lanes of a warp go on that wait for each other and are all there; whether there were any.
static bool release_exchange(unsigned first)
{
    const unsigned end = min(first + WARP, unsigned(threads.size()));
    for (unsigned index = first; index < end; index++) {
        const Thread& waiting = threads[index];
        if (waiting.state != State::AtExchange) {
            continue;
        }
        std::uint32_t there = 0, votes = 0;
        for (unsigned other = first; other < end; other++) {
            const Thread& lane = threads[other];
            if (lane.state == State::AtExchange && lane.site == waiting.site && lane.mask == waiting.mask) {
                there |= 1u << (other - first);
                votes |= std::uint32_t(lane.given != 0) << (other - first);
            }
        }
        if ((waiting.mask >> (index - first) & 1) == 0) {
            fail("a lane takes part in an exchange that does not name it", waiting.site);
        }
        if (there != waiting.mask) {
            continue;
        }
        const Site site = waiting.site;
        for (unsigned other = first; other < end; other++) {
            Thread& lane = threads[other];
            if (there >> (other - first) & 1) {
                if (!lane.is_vote && (there >> lane.source & 1) == 0) {
                    fail("a lane takes from one that gives nothing", site);
                }
                lane.taken = lane.is_vote ? votes & there : threads[first + lane.source].given;
                lane.state = State::Ready;
            }
        }
        return true;
    }
    return false;
}

static void release_barrier()
{
    const Thread* waiting = nullptr;
    bool has_ended = false;
    for (const Thread& thread : threads) {
        if (thread.state == State::AtExchange) {
            fail("a lane that is named does not take part in an exchange", thread.site);
        }
        if (thread.state == State::Done) {
            has_ended = true;
        } else if (waiting != nullptr && !(thread.site == waiting->site)) {
            fail("threads wait at different barriers", thread.site);
        } else {
            waiting = &thread;
        }
    }
    if (has_ended) {
        fail("a thread has ended while others wait at a barrier", waiting->site);
    }
    for (Thread& thread : threads) {
        thread.state = State::Ready;
    }
}

// Address space alone: pages come as they are touched.
static char* address_space(std::size_t num_bytes, int rights)
{
    void* pages = mmap(nullptr, num_bytes, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        fail("no memory");
    }
    return static_cast<char*>(pages);
}

static void run_block(bool is_falling)
{
    const unsigned num_threads = threads.size();
    for (unsigned index = 0; index < num_threads; index++) {
        Thread& thread = threads[index];
        thread.state = State::Ready;
        thread.has_begun = false;
        getcontext(&thread.start);
        thread.start.uc_stack.ss_sp = stacks + index * STACK_BYTES;
        thread.start.uc_stack.ss_size = STACK_BYTES;
        thread.start.uc_link = nullptr;
        makecontext(&thread.start, run_body, 0);
    }
    for (char* at = __start_emulated_shared; at + 4 <= __stop_emulated_shared; at += 4) {
        std::memcpy(at, &POISON, 4);
    }
    for (;;) {
        unsigned num_done = 0;
        for (unsigned step = 0; step < num_threads; step++) {
            const unsigned index = is_falling ? num_threads - 1 - step : step;
            if (threads[index].state == State::Ready) {
                resume(index);
            }
            num_done += threads[index].state == State::Done;
        }
        if (num_done == num_threads) {
            return;
        }
        bool goes_on = false;
        for (unsigned first = 0; first < num_threads; first += WARP) {
            goes_on |= release_exchange(first);
        }
        if (!goes_on) {
            release_barrier();
        }
    }
}

static std::uint32_t exchange(Site site, std::uint32_t mask, std::uint32_t given, std::uint32_t source, bool is_vote)
{
    running->mask = mask;
    running->given = given;
    running->source = source;
    running->is_vote = is_vote;
    wait(State::AtExchange, site);
    return running->taken;
}

template <class T> static T shuffled(Site site, std::uint32_t mask, T value, std::uint32_t source)
{
    static_assert(sizeof(T) == 4, "registers have 4 bytes");
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(site, mask, bits, source, false);
    std::memcpy(&value, &bits, 4);
    return value;
}

static std::uint32_t lane() { return threadIdx.x % WARP; }

// A source beyond the warp is the lane itself.
static std::uint32_t lane_below(unsigned step) { return lane() >= step ? lane() - step : lane(); }
static std::uint32_t lane_across(unsigned step) { return (lane() ^ step) < WARP ? lane() ^ step : lane(); }

static void read_words(void* to, std::size_t num_words)
{
    if (std::fread(to, 4, num_words, stdin) != num_words) {
        fail("the input ends too soon");
    }
}

static std::uint32_t read_word()
{
    std::uint32_t word;
    read_words(&word, 1);
    return word;
}

// A buffer that ends where the memory ends that may be touched.
struct Memory {
    char* begin;
    std::size_t num_bytes;
    char* pages;
    std::size_t page_bytes;

    void read()
    {
        num_bytes = 4 * std::size_t(read_word());
        const std::size_t unit = sysconf(_SC_PAGESIZE);
        page_bytes = (num_bytes + unit - 1) / unit * unit;
        pages = address_space(page_bytes + 2 * unit, PROT_NONE) + unit;
        protect(PROT_READ | PROT_WRITE);
        begin = pages + page_bytes - num_bytes;
        read_words(begin, num_bytes / 4);
    }

    void protect(int rights) const
    {
        if (page_bytes > 0 && mprotect(pages, page_bytes, rights) != 0) {
            fail("memory cannot be protected");
        }
    }

    std::vector<char> contents() const { return {begin, begin + num_bytes}; }
};

static void on_fault(int) { fail("the kernel reaches outside of its buffers, or writes to one that it only reads"); }

static void watch_faults()
{
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action = {};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}

template <class Params, class... Buffers, std::size_t... Place>
static void set_body(void (*kernel)(Params, Buffers*...), const Params& params, const std::vector<Memory>& buffers,
                     std::index_sequence<Place...>)
{
    body = [=] { kernel(params, reinterpret_cast<Buffers*>(buffers[Place].begin)...); };
}

template <class Params, class... Buffers> static int serve(void (*kernel)(Params, Buffers*...))
{
    const bool is_read_only[] = {std::is_const<Buffers>::value...};
    constexpr std::size_t num_buffers = sizeof...(Buffers);
    gridDim = {read_word(), read_word(), read_word()};
    const std::uint32_t num_threads = read_word();
    if (4 * read_word() != sizeof(Params)) {
        fail("`Params` of the kernel has another size than what it is given");
    }
    Params params;
    read_words(&params, sizeof(Params) / 4);
    if (read_word() != num_buffers) {
        fail("the kernel takes another number of buffers");
    }
    std::vector<Memory> buffers(num_buffers);
    std::vector<std::vector<char>> before(num_buffers), risen(num_buffers);
    for (std::size_t place = 0; place < num_buffers; place++) {
        buffers[place].read();
        before[place] = buffers[place].contents();
        if (is_read_only[place]) {
            buffers[place].protect(PROT_READ);
        }
    }
    set_body(kernel, params, buffers, std::index_sequence_for<Buffers...>());
    watch_faults();
    threads.resize(num_threads);
    stacks = address_space(num_threads * STACK_BYTES, PROT_READ | PROT_WRITE);
    const std::uint32_t num_blocks = gridDim.x * gridDim.y * gridDim.z;
    for (const bool is_falling : {false, true}) {
        for (std::uint32_t step = 0; step < num_blocks; step++) {
            const std::uint32_t block = is_falling ? num_blocks - 1 - step : step;
            blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
            run_block(is_falling);
        }
        for (std::size_t place = 0; place < num_buffers; place++) {
            if (is_read_only[place]) {
                continue;
            }
            if (is_falling && buffers[place].contents() != risen[place]) {
                fail("the results depend on the order of threads or blocks");
            }
            risen[place] = buffers[place].contents();
            if (!is_falling) {
                std::memcpy(buffers[place].begin, before[place].data(), buffers[place].num_bytes);
            }
        }
    }
    for (std::size_t place = 0; place < num_buffers; place++) {
        if (!is_read_only[place] && std::fwrite(risen[place].data(), 1, risen[place].size(), stdout) != risen[place].size()) {
            fail("the output cannot be written");
        }
    }
    return std::fflush(stdout) == 0 ? 0 : 2;
}

} // namespace emulation

#define EMULATED_SITE(what) (emulation::Site{what, __FILE__, __LINE__})
#define __syncthreads() emulation::wait(emulation::State::AtBarrier, EMULATED_SITE("__syncthreads"))
#define __syncwarp(mask) (void)emulation::exchange(EMULATED_SITE("__syncwarp"), mask, 0, emulation::lane(), false)
#define __ballot_sync(mask, votes) emulation::exchange(EMULATED_SITE("__ballot_sync"), mask, votes, 0, true)
#define __shfl_sync(mask, value, source) \
    emulation::shuffled(EMULATED_SITE("__shfl_sync"), mask, value, (source) % emulation::WARP)
#define __shfl_up_sync(mask, value, step) \
    emulation::shuffled(EMULATED_SITE("__shfl_up_sync"), mask, value, emulation::lane_below(step))
#define __shfl_xor_sync(mask, value, step) \
    emulation::shuffled(EMULATED_SITE("__shfl_xor_sync"), mask, value, emulation::lane_across(step))
#define EMULATED(kernel) \
    int main() { return emulation::serve(kernel); }

static inline float __uint_as_float(unsigned bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline unsigned atomicAdd(unsigned* at, unsigned x)
{
    const unsigned old = *at;
    *at += x;
    return old;
}

static inline unsigned atomicMin(unsigned* at, unsigned x)
{
    const unsigned old = *at;
    *at = min(old, x);
    return old;
}

static inline unsigned atomicXor(unsigned* at, unsigned x)
{
    const unsigned old = *at;
    *at ^= x;
    return old;
}

// Sign, five bits of exponent, ten of fraction.
static inline float host_half(unsigned short bits)
{
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) {
        return fraction == 0 ? sign * HUGE_VALF : NAN;
    }
    return sign * (exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(fraction + 1024), exponent - 25));
}
