#include "ops/recurrent/convolution.h"

#include <algorithm>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int TOKENS = 32;          // that meet the weights together
constexpr int64_t ALONE = 1 << 14;  // multiplications that take less than handing them out

void round_to(Dtype dtype, float* values, int count) {
    if (dtype == Dtype::f32) return;
    uint16_t rounded[TOKENS * CHANNELS];
    write(values, count, dtype, rounded, 0);
    read_row(rounded, dtype, 0, count, values);
}

// `count` values of one of torch's tensors from `first` on.
void read(const Values& values, int64_t first, int count, float* to) {
    if (!values.at) std::fill_n(to, count, 0.0f);
    else read_row(static_cast<const char*>(values.at) + first * int64_t(item_bytes(values.dtype)), values.dtype, 0, count, to);
}

// One token's channels from `first` on of what a sequence keeps.
size_t place(const Convolution& convolution, int token, int first, Dtype dtype) {
    return (size_t(token) * convolution.channels + first) * item_bytes(dtype);
}

}  // namespace

int64_t rows_of(const std::vector<SequenceRows>& sequences) {
    int64_t rows = 0;
    for (const SequenceRows& sequence : sequences) rows = std::max(rows, sequence.row + sequence.tokens);
    return rows;
}

void convolve_channels(const Convolution& convolution, const StridedRows& x, const SequenceRows& sequence, int first, int count,
                       float* out) {
    const Variant& variant = current_variant();
    const int window = convolution.window, before = window - 1, wide = padded(count), channels = convolution.channels;
    Workspace workspace;
    float* weights = workspace.take<float>(size_t(count) * window);
    float* weight = workspace.take<float>(size_t(window) * wide);
    float* bias = workspace.take<float>(wide);
    float* rows = workspace.take<float>(size_t(before + TOKENS) * wide);
    float* found = workspace.take<float>(size_t(TOKENS) * wide);
    std::fill_n(weight, size_t(window) * wide, 0.0f);
    std::fill_n(bias, wide, 0.0f);
    std::fill_n(rows, size_t(before + TOKENS) * wide, 0.0f);
    read(convolution.weight, int64_t(first) * window, count * window, weights);
    read(convolution.bias, first, count, bias);
    for (int k = 0; k < window; k++)
        for (int c = 0; c < count; c++) weight[k * wide + c] = weights[c * window + k];
    const char* kept = static_cast<const char*>(sequence.before);
    for (int k = 0; k < before; k++) read_row(kept + place(convolution, k, first, x.dtype), x.dtype, 0, count, rows + k * wide);
    for (int done = 0; done < sequence.tokens; done += TOKENS) {
        const int tokens = std::min(TOKENS, sequence.tokens - done);
        for (int token = 0; token < tokens; token++)
            read_row(x.row(sequence.row + done + token, first), x.dtype, 0, count, rows + size_t(before + token) * wide);
        variant.convolve({rows, weight, bias, tokens, window, wide, found});
        round_to(x.dtype, found, tokens * wide);
        if (convolution.silu) {
            variant.silu(found, tokens * wide);
            round_to(x.dtype, found, tokens * wide);
        }
        for (int token = 0; token < tokens; token++)
            std::copy_n(found + size_t(token) * wide, count, out + (sequence.row + done + token) * int64_t(channels) + first);
        std::copy_n(rows + size_t(tokens) * wide, size_t(before) * wide, rows);  // forward: the source lies behind
    }
    for (int k = 0; k < before; k++) write(rows + k * wide, count, x.dtype, sequence.after, size_t(k) * channels + first);
}

void convolve(const Convolution& convolution, const StridedRows& x, const std::vector<SequenceRows>& sequences, void* out) {
    const int channels = convolution.channels, blocks = (channels + CHANNELS - 1) / CHANNELS;
    const int64_t rows = rows_of(sequences);
    Workspace workspace;
    float* found = x.dtype == Dtype::f32 ? static_cast<float*>(out) : workspace.take<float>(size_t(rows) * channels);
    const auto some = [&](int item) {
        const SequenceRows& sequence = sequences[item / blocks];
        const int first = item % blocks * CHANNELS, count = std::min(CHANNELS, channels - first);
        convolve_channels(convolution, x, sequence, first, count, found);
        for (int token = 0; x.dtype != Dtype::f32 && token < sequence.tokens; token++) {
            const size_t at = size_t(sequence.row + token) * channels + first;
            write(found + at, count, x.dtype, out, at);
        }
    };
    const int items = int(sequences.size()) * blocks;
    if (rows * channels * convolution.window < ALONE) {
        for (int item = 0; item < items; item++) some(item);
        return;
    }
    Phase phase(items);
    Pool::instance().run([&] { phase.run([&](int item, int) { some(item); }); });
}

}  // namespace dali
