#include "threads/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/variants.h"
#include "threads/pool.h"

namespace dali {

namespace {

constexpr size_t CHUNK = size_t(1) << 20;

}  // namespace

double read_seconds(const void* from, size_t bytes) {
    const Variant& variant = current_variant();
    static std::atomic<int> used;  // so that no compiler drops the reading
    Phase chunks{int((bytes + CHUNK - 1) / CHUNK)};
    const auto started = std::chrono::steady_clock::now();
    Pool::instance().run([&] {
        chunks.run([&](int chunk, int) {
            const size_t at = size_t(chunk) * CHUNK;
            used.fetch_xor(variant.read(static_cast<const char*>(from) + at, std::min(CHUNK, bytes - at)), std::memory_order_relaxed);
        });
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

}  // namespace dali
