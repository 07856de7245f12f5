// A convolution over each channel's last few tokens, of which a sequence keeps those that the next one sees.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/activations.h"

namespace dali {

struct Convolution {
    Values weight;  // [channels, 1, window], the oldest token's first
    Values bias;    // [channels]
    int channels, window;
    bool silu;  // follows
};

// Tokens of one sequence, in a row of the step's, what it keeps before the first of them, and where to leave what it keeps after the
// last; both may be the same memory.
struct SequenceRows {
    int64_t row;
    int tokens;
    const void* before;
    void* after;
};

// Behind the last row.
int64_t rows_of(const std::vector<SequenceRows>& sequences);

constexpr int CHANNELS = 64;  // that an item convolves

// `count` channels from `first` on, at most CHANNELS, of one sequence: out [rows][channels], of which the sequence's are written. A
// sequence keeps [window - 1, channels] of x's dtype, the oldest first. The sum and what silu makes of it round to that dtype.
void convolve_channels(const Convolution& convolution, const StridedRows& x, const SequenceRows& sequence, int first, int count,
                       float* out);

// x [rows, channels] -> out [rows, channels], contiguous, of x's dtype.
void convolve(const Convolution& convolution, const StridedRows& x, const std::vector<SequenceRows>& sequences, void* out);

}  // namespace dali
