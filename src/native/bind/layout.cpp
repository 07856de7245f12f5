// Numbers' types, packed matrices and experts' records.
#include <stdexcept>

#include "bind/bind.h"

namespace dali {

Activation activation_of(const std::string& name) {
    const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped_swiglu", "clamped_silu"};
    for (int i = 0; i < 7; i++)
        if (name == names[i]) return Activation(i);
    throw std::invalid_argument("unknown activation " + name);
}

Format format_of(const std::string& name) {
    for (int i = 0; i < FORMATS; i++)
        if (name == TRAITS[i].name) return Format(i);
    throw std::invalid_argument("unknown format " + name);
}

namespace {

// formats, offsets, biases: of gate (if there is one), up, down.
ExpertLayout expert_layout(int hidden, int intermediate, bool biased, const Gate& gate_kind, const std::vector<std::string>& formats,
                           const std::vector<size_t>& offsets, const std::vector<size_t>& biases) {
    ExpertLayout layout;
    layout.hidden = hidden;
    layout.intermediate = intermediate;
    layout.gated = formats.size() == 3;
    layout.biased = biased;
    layout.gate_kind = gate_kind;
    const size_t up = layout.gated, down = up + 1;
    if (layout.gated) {
        layout.gate = Matrix(format_of(formats[0]), intermediate, hidden);
        layout.gate_at = offsets[0];
    }
    layout.up = Matrix(format_of(formats[up]), intermediate, hidden);
    layout.up_at = offsets[up];
    layout.down = Matrix(format_of(formats[down]), hidden, intermediate);
    layout.down_at = offsets[down];
    if (biased) {
        if (layout.gated) layout.gate_bias_at = biases[0];
        layout.up_bias_at = biases[up];
        layout.down_bias_at = biases[down];
    }
    return layout;
}

}  // namespace

void bind_layout(nb::module_& m) {
    nb::enum_<Dtype>(m, "Dtype").value("f32", Dtype::f32).value("bf16", Dtype::bf16).value("f16", Dtype::f16);
    nb::class_<Matrix>(m, "Matrix")
        .def("__init__", [](Matrix* self, const std::string& format, int rows,
                            int columns) { new (self) Matrix(format_of(format), rows, columns); })
        .def_prop_ro("bytes", &Matrix::bytes);
    nb::class_<ExpertLayout>(m, "ExpertLayout")
        .def("__init__", [](ExpertLayout* self, int hidden, int intermediate, bool biased, const std::string& activation, float alpha,
                            float limit, const std::vector<std::string>& formats, const std::vector<size_t>& offsets,
                            const std::vector<size_t>& biases) {
            const Gate gate_kind{activation_of(activation), alpha, limit};
            new (self) ExpertLayout(expert_layout(hidden, intermediate, biased, gate_kind, formats, offsets, biases));
        });
}

}  // namespace dali
