// Whole decoder layers, and models of them.
#include "bind/bind.h"
#include "model/decoding_model.h"
#include "model/activation.h"

namespace dali {

namespace {

std::vector<std::tuple<int, double>> reported(const std::vector<LayerOutcome>& outcomes) {
    std::vector<std::tuple<int, double>> all;
    for (const LayerOutcome& outcome : outcomes) all.emplace_back(outcome.active, outcome.expert_seconds);
    return all;
}

void bind_mlp(nb::module_& m) {
    m.def("activate", [](const std::string& activation, uintptr_t x, Dtype dtype, int64_t values, uintptr_t out) {
        const Activation kind = activation_of(activation);
        nb::gil_scoped_release unlocked;
        activate(kind, pointer<const void>(x), dtype, values, pointer<void>(out));
    });
    m.def("sigmoid", [](uintptr_t x, Dtype dtype, int values, uintptr_t out) {
        sigmoid(pointer<const void>(x), dtype, values, pointer<void>(out));
    });
    nb::class_<Mlp>(m, "Mlp").def("__init__", [](Mlp* self, const std::vector<const PackedLinear*>& first, const PackedLinear& down,
                                                 const std::string& activation) {
        new (self) Mlp{{}, down, activation_of(activation)};
        for (const PackedLinear* linear : first) self->first.push_back(*linear);
    });
}

void bind_layer(nb::module_& m) {
    using Norms = std::tuple<NormParts, NormParts, NormParts, NormParts>;  // before and after attention, before and after the MLP
    nb::class_<DecoderLayer>(m, "DecoderLayer")
        .def("__init__",
             [](DecoderLayer* self, int hidden, const Norms& norms, const Mixer& mixer, const Router* router,
                const ExpertLayout* layout, uintptr_t workload, const Mlp* mlp, const ValueParts& shared_gate,
                float residual_scale, const Norms& beside, const ValueParts& output_scale) {
                 const auto& [before_attention, after_attention, before_mlp, after_mlp] = norms;
                 const auto& [before_router, before_experts, after_experts, after_dense] = beside;
                 new (self) DecoderLayer{hidden, norm_of(before_attention), norm_of(after_attention), norm_of(before_mlp),
                                         norm_of(after_mlp), mixer, router, layout, pointer<int64_t>(workload), mlp,
                                         values_of(shared_gate), residual_scale,
                                         {norm_of(before_router), norm_of(before_experts), norm_of(after_experts), norm_of(after_dense)},
                                         values_of(output_scale)};
             },
             nb::arg("hidden"), nb::arg("norms"), nb::arg("mixer").none(), nb::arg("router").none(), nb::arg("layout").none(),
             nb::arg("workload"), nb::arg("mlp").none(), nb::arg("shared_gate"), nb::arg("residual_scale"), nb::arg("beside"), nb::arg("output_scale"),
             nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 8>());
    // Layers one after another; kept and records: of each layer. Returns each one's (experts that took part, seconds they took).
    m.def("decode_layers", [](const std::vector<const DecoderLayer*>& layers, const std::vector<const ExpertRecords*>& records,
                              uintptr_t x, Dtype dtype, int rows, uintptr_t cos, uintptr_t sin,
                              const std::vector<KeptParts>& kept, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        std::vector<LayerOutcome> outcomes;
        for (size_t i = 0; i < layers.size(); i++)
            outcomes.push_back(decode_layer(*layers[i], i + 1 < layers.size() ? layers[i + 1] : nullptr, records.at(i)->experts,
                                            pointer<const void>(i ? out : x), dtype, rows, pointer<const void>(cos),
                                            pointer<const void>(sin), kept_of(kept.at(i)), pointer<void>(out)));
        return reported(outcomes);
    });
}

}  // namespace

void bind_model(nb::module_& m) {
    bind_mlp(m);
    bind_layer(m);
    using Rotations = std::vector<std::vector<std::tuple<uintptr_t, uintptr_t>>>;  // (cos, sin): of each kind, of each token
    nb::class_<Embeddings>(m, "Embeddings")
        .def("__init__", [](Embeddings* self, uintptr_t table, int64_t vocabulary, float scale) {
            new (self) Embeddings{pointer<const void>(table), nullptr, {}, vocabulary, scale};
        })
        .def("__init__", [](Embeddings* self, const Matrix& matrix, uintptr_t packed, float scale) {
            new (self) Embeddings{nullptr, pointer<const uint8_t>(packed), matrix, matrix.rows, scale};
        });
    nb::class_<DecodingModel>(m, "DecodingModel")
        .def("__init__",
             [](DecodingModel* self, Dtype dtype, const Embeddings& embeddings, const std::vector<const DecoderLayer*>& layers,
                const std::vector<int>& rotations, const NormParts& before_head, const PackedLinear& head, float logits_divisor) {
                 new (self) DecodingModel{dtype, embeddings, layers, rotations, norm_of(before_head), head, logits_divisor};
             })
        // records, kept and result as above
        .def("decode", [](const DecodingModel& self, const std::vector<const ExpertRecords*>& records, const std::vector<int64_t>& ids,
                          const Rotations& rotations, const std::vector<KeptParts>& kept, uintptr_t logits) {
            nb::gil_scoped_release unlocked;
            std::vector<std::vector<Rotation>> turns;
            for (const auto& kind : rotations) {
                turns.emplace_back();
                for (const auto& [cos, sin] : kind) turns.back().push_back({pointer<const void>(cos), pointer<const void>(sin)});
            }
            std::vector<Kept> kept_by;
            for (const KeptParts& layer : kept) kept_by.push_back(kept_of(layer));
            std::vector<const LayerExperts*> experts_of;
            for (const ExpertRecords* layer : records) experts_of.push_back(&layer->experts);
            return reported(decode(self, ids, turns, kept_by, experts_of, pointer<void>(logits)));
        });
}

}  // namespace dali
