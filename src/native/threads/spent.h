// Time spent in the kernels, by what they compute.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace dali {

enum class Part : int { experts, dense, attention, norm, router };
constexpr int PARTS = 5;

inline std::atomic<int64_t>& nanoseconds(Part part) {
    static std::atomic<int64_t> spent[PARTS];
    return spent[int(part)];
}

// Counts its own lifetime, on the calling thread.
class Timed {
  public:
    explicit Timed(Part part) : part_(part), started_(std::chrono::steady_clock::now()) {}
    ~Timed() { nanoseconds(part_) += so_far(); }

    int64_t so_far() const {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - started_).count();
    }

  private:
    Part part_;
    std::chrono::steady_clock::time_point started_;
};

}  // namespace dali
