// The CPU library: loads with ctypes, which releases the interpreter's lock for every call. Picks the loops for this
// processor once, and spreads the rows of large images over a few threads that sleep in between.
#include "loops.hpp"
#include "temporal_loops.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define PS_EXPORT extern "C" __declspec(dllexport)
#else
#include <pthread.h>
#define PS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace photonstep {
namespace {

struct Variant {
    const char* name;
    const Loops* loops;
    const TemporalLoops* temporal;
};

Variant best_variant() {
#if defined(PS_X86_VARIANTS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return {"avx512", &loops_avx512, &temporal_loops_avx512};
    if (__builtin_cpu_supports("avx2")) return {"avx2", &loops_avx2, &temporal_loops_avx2};
#endif
    return {"baseline", &loops_baseline, &temporal_loops_baseline};
}

Variant chosen = best_variant();

constexpr int64_t BYTES_WORTH_A_THREAD = 3 << 20;  // below it, waking a sleeping thread costs more than it saves

// Threads that sleep between jobs. One job at a time; a caller that finds it busy does its rows alone.
class Crew {
public:
    static Crew& instance() { return *current_; }

    // A forked child has none of the parent's threads, but copies of the locks that they held and of the condition that
    // they wait on, which would wait for them for ever: it begins with a crew of its own.
    static void begin_in_child() {
        const int wanted = current_->wanted_;
        current_ = new Crew;
        current_->wanted_ = wanted;
    }

    void set_threads(int count) { wanted_ = count < 1 ? 1 : count; }
    int threads() const { return wanted_; }

    void run(int64_t units, int64_t bytes, const std::function<void(int64_t, int64_t)>& work) {
        int64_t shares = bytes / BYTES_WORTH_A_THREAD;
        if (shares > wanted_) shares = wanted_;
        if (shares > units) shares = units;
        std::unique_lock<std::mutex> turn(busy_, std::defer_lock);
        if (shares < 2 || !turn.try_lock() || !have(shares - 1)) {
            work(0, units);
            return;
        }
        {
            std::lock_guard<std::mutex> hold(mutex_);
            work_ = &work;
            units_ = units;
            shares_ = shares;
            next_ = 1;
            waiting_ = shares - 1;
        }
        wake_.notify_all();
        work(0, units / shares);
        // a share that no thread has taken yet is done here: a sleeping thread must not hold up the frame
        for (int64_t share; (share = take()) > 0;) finish(share);
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return waiting_ == 0; });
        work_ = nullptr;
    }

private:
    bool have(int64_t count) {
        try {
            for (; started_ < count; ++started_) std::thread([this] { serve(); }).detach();
        } catch (...) {
            return false;
        }
        return true;
    }

    int64_t take() {
        std::lock_guard<std::mutex> hold(mutex_);
        return work_ && next_ < shares_ ? next_++ : 0;
    }

    void finish(int64_t share) {
        (*work_)(units_ * share / shares_, units_ * (share + 1) / shares_);
        std::lock_guard<std::mutex> hold(mutex_);
        if (--waiting_ == 0) done_.notify_one();
    }

    void serve() {
        for (;;) {
            int64_t share;
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [this] { return work_ && next_ < shares_; });
                share = next_++;
            }
            finish(share);
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t, int64_t)>* work_ = nullptr;
    int64_t units_ = 0, shares_ = 0, next_ = 0, waiting_ = 0, started_ = 0;
    std::atomic<int> wanted_{1};
    static Crew* current_;  // never destroyed: threads may still sleep in it when the process ends
};

Crew* Crew::current_ = new Crew;
#if !defined(_WIN32)
[[maybe_unused]] const int forks_are_seen = pthread_atfork(nullptr, nullptr, Crew::begin_in_child);
#endif

void spread(int64_t units, int64_t bytes, const std::function<void(int64_t, int64_t)>& work) {
    Crew::instance().run(units, bytes, work);
}

int64_t pixel_bytes(int32_t type) { return type == UINT8 ? 1 : type == UINT16 ? 2 : 4; }

// Calls chunk(index, first, last) for chunks of rows, so that sums per chunk do not depend on the number of threads.
template <class Chunk>
void spread_chunks(int64_t rows, int64_t rows_each, int64_t bytes, const Chunk& chunk) {
    const int64_t chunks = (rows + rows_each - 1) / rows_each;
    spread(chunks, bytes, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) chunk(i, i * rows_each, (i + 1) * rows_each < rows ? (i + 1) * rows_each : rows);
    });
}

}  // namespace
}  // namespace photonstep

using namespace photonstep;

#ifndef PS_SOURCES
#define PS_SOURCES "unknown"
#endif

PS_EXPORT const char* ps_sources() { return PS_SOURCES; }
PS_EXPORT const char* ps_variant() { return chosen.name; }
PS_EXPORT void ps_set_threads(int32_t count) { Crew::instance().set_threads(count); }
PS_EXPORT int32_t ps_threads() { return Crew::instance().threads(); }

// Another instruction set, for tests; 0 where this processor or build has none of that name.
PS_EXPORT int32_t ps_use_variant(const char* name) {
    const Variant best = best_variant();
    const Variant all[] = {
        {"baseline", &loops_baseline, &temporal_loops_baseline},
#if defined(PS_X86_VARIANTS)
        {"avx2", &loops_avx2, &temporal_loops_avx2},
        {"avx512", &loops_avx512, &temporal_loops_avx512},
#endif
    };
    for (const Variant& variant : all) {
        if (!strcmp(variant.name, name)) {
            chosen = variant;
            return 1;
        }
        if (!strcmp(variant.name, best.name)) break;
    }
    return 0;
}

PS_EXPORT int64_t ps_size_of(const char* name) {
#define PS_SIZE(type) \
    if (!strcmp(name, #type)) return sizeof(type)
    PS_SIZE(Stabilise);
    PS_SIZE(NetworkInput);
    PS_SIZE(SamplerRow);
    PS_SIZE(Normal);
    PS_SIZE(Electrons);
    PS_SIZE(Counts);
    PS_SIZE(BlockMeans);
    PS_SIZE(Residual);
    PS_SIZE(OrderStatistics);
    PS_SIZE(Laplacian);
    PS_SIZE(Preview);
    PS_SIZE(Content);
    PS_SIZE(Fuse);
    PS_SIZE(FusedNoise);
    PS_SIZE(Similarity);
    PS_SIZE(Window);
    PS_SIZE(Fill);
    PS_SIZE(FullPixels);
    PS_SIZE(Range);
    PS_SIZE(Balance);
#undef PS_SIZE
    return -1;
}

PS_EXPORT void ps_stabilise(const Stabilise* k) {
    const int64_t bytes = k->height * k->width * (pixel_bytes(k->pixel_type) + 4 + (k->scale_map ? 8 : 0));
    spread(k->height, bytes, [k](int64_t a, int64_t b) { chosen.loops->stabilise(*k, a, b); });
}

PS_EXPORT void ps_network_input(const NetworkInput* k) {
    spread(k->height, k->height * k->width * 12, [k](int64_t a, int64_t b) { chosen.loops->network_input(*k, a, b); });
}

PS_EXPORT void ps_sampler_row(const SamplerRow* k) {
    const int64_t bytes = k->height * k->width * (k->n != 0 ? 48 : 16);
    spread(k->height, bytes, [k](int64_t a, int64_t b) { chosen.loops->sampler_row(*k, a, b); });
}

PS_EXPORT void ps_normal(const Normal* k) {
    spread(k->height, k->height * k->width * 32, [k](int64_t a, int64_t b) { chosen.loops->normal(*k, a, b); });
}

PS_EXPORT void ps_electrons(const Electrons* k) {
    spread(k->height, k->height * k->width * 8, [k](int64_t a, int64_t b) { chosen.loops->electrons(*k, a, b); });
}

PS_EXPORT void ps_counts(Counts* k) {
    std::vector<double> light((k->height + CHUNK_ROWS - 1) / CHUNK_ROWS);
    const int64_t bytes = k->height * k->width * (4 + pixel_bytes(k->pixel_type) + (k->per_gain_map ? 8 : 0));
    spread_chunks(k->height, CHUNK_ROWS, bytes, [&](int64_t i, int64_t a, int64_t b) { chosen.loops->counts(*k, a, b, &light[i]); });
    k->light = 0;
    for (double part : light) k->light += part;
}

PS_EXPORT void ps_block_means(const BlockMeans* k) {
    const int64_t bytes = k->height * k->width * (pixel_bytes(k->pixel_type) + (k->scale_map ? 8 : 0));
    spread(k->height / k->block, bytes, [k](int64_t a, int64_t b) { chosen.loops->block_means(*k, a, b); });
}

PS_EXPORT void ps_residual(Residual* k) {
    const int64_t bands = (k->height + k->band * k->step - 1) / (k->band * k->step);
    std::vector<Residual> parts(bands, Residual{});
    spread_chunks(bands, 1, k->height * k->width * 8 / k->step,
                  [&](int64_t i, int64_t a, int64_t b) { chosen.loops->residual(*k, a, b, &parts[i]); });
    k->squares = k->along_y = k->along_x = 0;
    k->pixels = k->pairs_y = k->pairs_x = k->cut_off = 0;
    for (const Residual& part : parts) {
        k->squares += part.squares;
        k->along_y += part.along_y;
        k->along_x += part.along_x;
        k->pixels += part.pixels;
        k->pairs_y += part.pairs_y;
        k->pairs_x += part.pairs_x;
        k->cut_off += part.cut_off;
    }
}

// Exact order statistics by three passes over 11, 11 and 10 bits of the sortable key. The first histogram serves all
// ranks; the later passes look at the keys of one of its bins only.
PS_EXPORT void ps_order_statistics(OrderStatistics* k) {
    std::vector<uint32_t> coarse(2048), fine(2048), kept;
    const int64_t parts = 8, each = (k->count + parts - 1) / parts;
    std::vector<uint32_t> part(parts * 4 * 2048);  // four each, so that equal neighbours do not wait for one another
    spread(parts, k->count * 24, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
            uint32_t* here = &part[p * 4 * 2048];
            const int64_t end = (p + 1) * each < k->count ? (p + 1) * each : k->count;
            for (int64_t i = p * each; i < end; ++i) ++here[(i & 3) * 2048 + (sortable(k->values[i]) >> 21)];
        }
    });
    for (int64_t p = 0; p < 4 * parts; ++p)
        for (int64_t bin = 0; bin < 2048; ++bin) coarse[bin] += part[p * 2048 + bin];
    uint32_t gathered = 1u << 31;  // the bin whose keys are kept; none yet
    for (int32_t r = 0; r < k->ranks; ++r) {
        int64_t rank = k->rank[r];
        uint32_t bin = 0;
        while (bin < 2047 && rank >= coarse[bin]) rank -= coarse[bin++];
        if (bin != gathered) {
            kept.clear();
            kept.reserve(coarse[bin]);
            for (int64_t i = 0; i < k->count; ++i) {
                const uint32_t key = sortable(k->values[i]);
                if (key >> 21 == bin) kept.push_back(key);
            }
            gathered = bin;
        }
        uint32_t prefix = bin;
        for (const int width : {11, 10}) {
            const int shift = width == 11 ? 10 : 0;
            const uint32_t mask = (1u << width) - 1;
            std::fill(fine.begin(), fine.end(), 0u);
            for (const uint32_t key : kept)
                if (key >> (shift + width) == prefix) ++fine[(key >> shift) & mask];
            uint32_t digit = 0;
            while (digit < mask && rank >= fine[digit]) rank -= fine[digit++];
            prefix = (prefix << width) | digit;
        }
        k->value[r] = from_sortable(prefix);
    }
}

PS_EXPORT void ps_laplacian(const Laplacian* k) {
    spread(k->height - 2, k->height * k->width * 8, [k](int64_t a, int64_t b) { chosen.loops->laplacian(*k, a, b); });
}

PS_EXPORT void ps_preview(const Preview* k) {
    const int64_t bytes = k->height * k->width * (pixel_bytes(k->pixel_type) + 1);
    spread(k->height, bytes, [k](int64_t a, int64_t b) { chosen.loops->preview(*k, a, b); });
}

PS_EXPORT void ps_content(Content* k) {
    std::vector<Content> parts((k->height + CHUNK_ROWS - 1) / CHUNK_ROWS, Content{});
    spread_chunks(k->height, CHUNK_ROWS, k->height * k->width * 8,
                  [&](int64_t i, int64_t a, int64_t b) { chosen.loops->content(*k, a, b, &parts[i]); });
    k->low = k->high = 0;
    k->full_pixels = 0;
    for (const Content& part : parts) {
        k->low += part.low;
        k->high += part.high;
        k->full_pixels += part.full_pixels;
    }
}

PS_EXPORT void ps_fuse(const Fuse* k) {
    const int64_t chunks = (k->height + FUSE_CHUNK_ROWS - 1) / FUSE_CHUNK_ROWS;
    spread(chunks, k->height * k->width * 100, [k](int64_t first, int64_t last) {
        std::vector<float> scratch(fuse_scratch(k->width));
        for (int64_t i = first; i < last; ++i) {
            const int64_t top = i * FUSE_CHUNK_ROWS, bottom = top + FUSE_CHUNK_ROWS;
            chosen.temporal->fuse(*k, top, bottom < k->height ? bottom : k->height, scratch.data());
        }
    });
}

PS_EXPORT void ps_fused_noise(const FusedNoise* k) {
    spread(k->height, k->height * k->width * 16, [k](int64_t first, int64_t last) {
        std::vector<float> scratch(fuse_scratch(k->width));
        chosen.temporal->fused_noise(*k, first, last, scratch.data());
    });
}

PS_EXPORT void ps_similarity(Similarity* k) {
    std::vector<Similarity> parts((k->height + k->block - 1) / k->block, Similarity{});
    spread_chunks(k->height, k->block, k->height * k->width * 8,
                  [&](int64_t i, int64_t a, int64_t b) { chosen.temporal->similarity(*k, a, b, &parts[i]); });
    k->sum_cut = 0;
    k->largest_block = 0;
    for (const Similarity& part : parts) {
        k->sum_cut += part.sum_cut;
        if (part.largest_block > k->largest_block) k->largest_block = part.largest_block;
    }
}
