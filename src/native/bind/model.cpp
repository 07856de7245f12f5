// Whole decoder layers, and models of them.
#include "bind/bind.h"
#include "model/decoding_model.h"

namespace dali {

namespace {

std::vector<std::tuple<int, double>> reported(const std::vector<LayerOutcome>& outcomes) {
    std::vector<std::tuple<int, double>> all;
    for (const LayerOutcome& outcome : outcomes) all.emplace_back(outcome.active, outcome.expert_seconds);
    return all;
}

}  // namespace

void bind_model(nb::module_& m) {
    using RouterParts = std::tuple<uintptr_t, int, int, bool, Dtype>;  // weight, experts, top_k, normalise, dtype of the weights
    nb::class_<DecoderLayer>(m, "DecoderLayer")
        .def("__init__",
             [](DecoderLayer* self, const NormParts& before_attention, const AttentionModule& attention, const NormParts& before_experts,
                const RouterParts& router, const ExpertLayout& layout) {
                 const auto& [weight, experts, top_k, normalise, weights_dtype] = router;
                 new (self) DecoderLayer{norm_of(before_attention), norm_of(before_experts), attention,
                                         {pointer<const void>(weight), experts, top_k, normalise, weights_dtype}, layout};
             },
             nb::keep_alive<1, 3>(), nb::keep_alive<1, 6>());
    // Layers one after another; tokens and records: of each layer. Returns each one's (experts that took part, seconds they took).
    m.def("decode_layers", [](const std::vector<const DecoderLayer*>& layers, const std::vector<const ExpertRecords*>& records,
                              uintptr_t x, Dtype dtype, int rows, uintptr_t cos, uintptr_t sin,
                              const std::vector<std::vector<Token>>& tokens, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        std::vector<LayerOutcome> outcomes;
        for (size_t i = 0; i < layers.size(); i++)
            outcomes.push_back(decode_layer(*layers[i], i + 1 < layers.size() ? layers[i + 1] : nullptr, records.at(i)->at,
                                            pointer<const void>(i ? out : x), dtype, rows, pointer<const void>(cos),
                                            pointer<const void>(sin), decoding(tokens.at(i)), pointer<void>(out)));
        return reported(outcomes);
    });
    nb::class_<DecodingModel>(m, "DecodingModel")
        .def("__init__",
             [](DecodingModel* self, Dtype dtype, uintptr_t embeddings, int64_t vocabulary, const std::vector<const DecoderLayer*>& layers,
                const NormParts& before_head, const PackedLinear& head) {
                 new (self) DecodingModel{dtype, pointer<const void>(embeddings), vocabulary, layers, norm_of(before_head), head};
             })
        // rotations: (cos, sin) of each token; records, tokens and result as above
        .def("decode", [](const DecodingModel& self, const std::vector<const ExpertRecords*>& records, const std::vector<int64_t>& ids,
                          const std::vector<std::tuple<uintptr_t, uintptr_t>>& rotations, const std::vector<std::vector<Token>>& tokens,
                          uintptr_t logits) {
            nb::gil_scoped_release unlocked;
            std::vector<Rotation> turns;
            for (const auto& [cos, sin] : rotations) turns.push_back({pointer<const void>(cos), pointer<const void>(sin)});
            std::vector<std::vector<DecodingToken>> tokens_of;
            for (const std::vector<Token>& layer : tokens) tokens_of.push_back(decoding(layer));
            std::vector<const Records*> records_of;
            for (const ExpertRecords* layer : records) records_of.push_back(&layer->at);
            return reported(decode(self, ids, turns, tokens_of, records_of, pointer<void>(logits)));
        });
}

}  // namespace dali
