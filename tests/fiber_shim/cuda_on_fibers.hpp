// Enough of CUDA to run kernels on a CPU: one fiber per CUDA thread, one block after another.
//
// Barriers and shuffles are real: a fiber waits until the others of its block or warp have come. A barrier that some
// threads never reach is an error. Shared memory is filled with rubbish before every block, and fibers may run in
// reverse order, so that a kernel that leans on either shows it.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __shared__ static __attribute__((section("shared_memory")))

struct Index3 {
    unsigned x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {

constexpr unsigned WARP_SIZE = 32;
constexpr size_t STACK = 64 << 10;

struct Barrier {
    unsigned waiting = 0, generation = 0;
};

struct Fiber {
    jmp_buf place;
    bool done;
    const unsigned* awaited;  // null, or a barrier's generation
    unsigned seen;
};

static std::vector<Fiber> all;  // made once and used for every block: a context switch by longjmp needs no system call
static std::vector<char> stacks;
static std::vector<Barrier> of_warp;
static Barrier of_block;
static jmp_buf scheduler;
static ucontext_t starter;
static unsigned current;
static const char* failure;
static void (*body)(void*);
static void* argument;
static std::vector<uint64_t> exchanged;

static void pause() {
    if (!_setjmp(all[current].place)) _longjmp(scheduler, 1);
}

static void enter() {
    for (;;) {
        pause();
        body(argument);
        all[current].done = true;
    }
}

static void make(unsigned threads) {
    all.resize(threads);
    stacks.resize(threads * STACK);
    exchanged.resize(threads);
    of_warp.resize((threads + WARP_SIZE - 1) / WARP_SIZE);
    for (current = 0; current < threads; ++current) {
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks.data() + current * STACK;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, enter, 0);
        if (!_setjmp(scheduler)) swapcontext(&starter, &context);
    }
}

static void arrive(Barrier& barrier, unsigned expected) {
    const unsigned generation = barrier.generation;
    if (++barrier.waiting == expected) {
        barrier.waiting = 0;
        ++barrier.generation;
        return;
    }
    all[current].awaited = &barrier.generation;
    all[current].seen = generation;
    pause();
    all[current].awaited = nullptr;
}

static void run_block(unsigned threads, bool reversed) {
    if (all.size() != threads) make(threads);
    for (Fiber& fiber : all) {
        fiber.done = false;
        fiber.awaited = nullptr;
    }
    of_warp.assign(of_warp.size(), Barrier());
    of_block = Barrier();
    static unsigned left, n;  // longjmp forgets what is in registers
    static bool moved;
    for (left = threads; left;) {
        moved = false;
        for (n = 0; n < threads; ++n) {
            const unsigned i = reversed ? threads - 1 - n : n;
            if (all[i].done || (all[i].awaited && *all[i].awaited == all[i].seen)) continue;
            current = i;
            threadIdx = {i, 0, 0};
            if (!_setjmp(scheduler)) _longjmp(all[i].place, 1);
            moved = true;
            left -= all[current].done;
        }
        if (left && !moved) {
            failure = "a barrier or shuffle was not reached by all threads";
            all.clear();  // the fibers stand in the middle of the kernel
            return;
        }
    }
}

}  // namespace fibers

static inline void __syncthreads() { fibers::arrive(fibers::of_block, blockDim.x); }

template <class T>
static T __shfl_down_sync(unsigned mask, T value, int apart) {
    static_assert(sizeof(T) <= 8, "one register or two");
    const unsigned me = fibers::current, warp = me / fibers::WARP_SIZE, begin = warp * fibers::WARP_SIZE;
    const unsigned lanes = blockDim.x - begin < fibers::WARP_SIZE ? blockDim.x - begin : fibers::WARP_SIZE;
    if (mask != 0xffffffffu) fibers::failure = "a shuffle of part of a warp is not emulated";
    memcpy(&fibers::exchanged[me], &value, sizeof value);
    fibers::arrive(fibers::of_warp[warp], lanes);
    T other = value;
    if (me - begin + apart < lanes) memcpy(&other, &fibers::exchanged[me + apart], sizeof other);
    fibers::arrive(fibers::of_warp[warp], lanes);
    return other;
}

template <class T>
static T atomicAdd(T* address, T value) {  // fibers change only at barriers
    const T before = *address;
    *address += value;
    return before;
}
