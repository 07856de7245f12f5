#include "recurrent/delta_net.h"

#include <algorithm>
#include <cmath>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int FEW = 1 << 16;      // values that take less than waking threads
constexpr float LINEAR = 20.0f;  // from here on softplus(x) is x

float softplus(float x) { return x > LINEAR ? x : std::log1p(std::exp(x)); }

// The outputs of the first projections.
struct Projected {
    std::vector<char*> at;
    std::vector<int> columns;
    Dtype dtype;

    const char* head(const Field& field, int row, int head) const {
        const size_t place = size_t(row) * columns[field.projection] + field.at(head);
        return at[field.projection] + place * item_bytes(dtype);
    }
    float value(const Field& field, int row, int head) const {
        float value;
        read_row(this->head(field, row, head), dtype, 0, 1, &value);
        return value;
    }
    Strip strip(const Field& field, int head, int width) const { return {this->head(field, 0, head), columns[field.projection], width}; }
};

template <class Work>
void each_row(int rows, int columns, Work work) {
    if (int64_t(rows) * columns < FEW) {
        for (int row = 0; row < rows; row++) work(row);
        return;
    }
    Phase phase(rows);
    Pool::instance().run([&] { phase.run([&](int row, int) { work(row); }); });
}

// Decays and rates of a row's heads.
void read_gates(const DeltaNet& module, const Projected& projected, int row, float* decay, float* beta) {
    const int decays = module.rule.by_channel ? module.rule.key_width : 1;  // of a head
    for (int head = 0; head < module.rule.heads; head++) {
        beta[head] = 1.0f / (1.0f + std::exp(-projected.value(module.beta, row, head)));
        float* of = decay + head * decays;
        read_row(projected.head(module.decay, row, head), projected.dtype, 0, decays, of);
        for (int i = 0; i < decays; i++) of[i] = module.rate[head] * softplus(of[i] + module.offset[head * decays + i]);
    }
}

// What the rule gave for a row's heads, in place: over its root mean square, times the norm's weights and silu of the gates.
void gate_heads(const DeltaNet& module, const Projected& projected, int row, float* values) {
    const Variant& variant = current_variant();
    const int width = module.rule.value_width;
    Workspace workspace;
    float* gate = workspace.take<float>(padded(width));
    std::fill_n(gate, padded(width), 0.0f);
    for (int head = 0; head < module.rule.heads; head++, values += width) {
        read_row(projected.head(module.gate, row, head), projected.dtype, 0, width, gate);
        module.by_sigmoid ? variant.sigmoids(gate, padded(width)) : variant.silu(gate, padded(width));
        variant.scale(values, 1.0f / std::sqrt(variant.sum_of_squares(values, width) / float(width) + module.epsilon), width);
        variant.multiply(values, module.norm, width);
        variant.multiply(values, gate, width);
    }
}

void read_next(const PackedLinear& linear) {
    const Span next = span(linear);
    Pool::instance().announce(&next, 1);
}

}  // namespace

void announce(const DeltaNet& module) {
    Span spans[MOST_SPANS];
    const int count = std::min<int>(MOST_SPANS, int(module.in.size()));
    for (int i = 0; i < count; i++) spans[i] = span(module.in[i]);
    Pool::instance().announce(spans, count);
}

void announce(const ShortConvolution& module) { read_next(module.in); }

void mix(const DeltaNet& module, const void* x, Dtype dtype, int rows, const States& states, void* out) {
    const DeltaRule& rule = module.rule;
    const int keys = rule.key_heads * rule.key_width, values = rule.heads * rule.value_width, channels = module.convolution.channels;
    Workspace workspace;
    Projected projected{{}, {}, dtype};
    std::vector<Projection> projections;
    for (const PackedLinear& linear : module.in) {
        projected.columns.push_back(linear.matrix.rows);
        projected.at.push_back(workspace.take<char>(size_t(rows) * linear.matrix.rows * item_bytes(dtype)));
        projections.push_back({linear, projected.at.back()});
    }
    project(projections, x, dtype, rows);
    for (const auto& [from, linear] : module.raised) {
        projected.columns.push_back(linear.matrix.rows);
        projected.at.push_back(workspace.take<char>(size_t(rows) * linear.matrix.rows * item_bytes(dtype)));
        project({{linear, projected.at.back()}}, projected.at.at(from), dtype, rows);
    }
    read_next(module.out);
    std::vector<Strip> strips;
    for (int head = 0; head < rule.key_heads; head++) strips.push_back(projected.strip(module.query, head, rule.key_width));
    for (int head = 0; head < rule.key_heads; head++) strips.push_back(projected.strip(module.key, head, rule.key_width));
    for (int head = 0; head < rule.heads; head++) strips.push_back(projected.strip(module.value, head, rule.value_width));
    float* mixed = workspace.take<float>(size_t(rows) * channels);
    const int decays = rule.by_channel ? rule.heads * rule.key_width : rule.heads;
    float* decay = workspace.take<float>(size_t(rows) * decays);
    float* beta = workspace.take<float>(size_t(rows) * rule.heads);
    float* found = workspace.take<float>(size_t(rows) * values);
    void* gated = workspace.take<char>(size_t(rows) * values * item_bytes(dtype));
    {
        const Timed timed(Part::attention);
        convolve(module.convolution, strips, dtype, states.at(0), Dtype::f32, mixed);
        each_row(rows, values, [&](int row) {
            read_gates(module, projected, row, decay + size_t(row) * decays, beta + size_t(row) * rule.heads);
        });
        delta_rule(rule, {mixed, channels}, {mixed + keys, channels}, {mixed + 2 * keys, channels}, {decay, decays},
                   {beta, rule.heads}, states.at(1), found);
        each_row(rows, values, [&](int row) {
            gate_heads(module, projected, row, found + size_t(row) * values);
            write(found + size_t(row) * values, values, dtype, gated, size_t(row) * values);
        });
    }
    project({{module.out, out}}, gated, dtype, rows);
}

void mix(const ShortConvolution& module, const void* x, Dtype dtype, int rows, const States& states, void* out) {
    const int width = module.convolution.channels, columns = 3 * width;
    const size_t item = item_bytes(dtype);
    Workspace workspace;
    char* projected = workspace.take<char>(size_t(rows) * columns * item);
    char* gated = workspace.take<char>(size_t(rows) * width * item);
    char* found = workspace.take<char>(size_t(rows) * width * item);
    project({{module.in, projected}}, x, dtype, rows);
    read_next(module.out);
    const auto multiplied = [&](const char* values, int by, int row, char* to) {  // by the part of the projection that begins there
        Workspace workspace;
        float* a = workspace.take<float>(width);
        float* b = workspace.take<float>(width);
        read_row(values, dtype, 0, width, a);
        read_row(projected + (size_t(row) * columns + by) * item, dtype, 0, width, b);
        current_variant().multiply(a, b, width);
        write(a, width, dtype, to, size_t(row) * width);
    };
    {
        const Timed timed(Part::attention);
        each_row(rows, width, [&](int row) { multiplied(projected + (size_t(row) * columns + 2 * width) * item, 0, row, gated); });
        convolve(module.convolution, {{gated, width, width}}, dtype, states.at(0), dtype, found);
        each_row(rows, width, [&](int row) { multiplied(found + size_t(row) * width * item, width, row, gated); });
    }
    project({{module.out, out}}, gated, dtype, rows);
}

}  // namespace dali
