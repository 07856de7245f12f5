// A step's kernels.
#include "gpu/model.h"

#include <algorithm>

#include "gpu/flag.h"
#include "gpu/model_parts.h"

namespace dali::gpu {

namespace {

constexpr int MOST_GRAPH_ROWS = 8;  // with more, launching takes little beside what is launched

int strips(const dali::Matrix& matrix) { return (matrix.rows + 31) / 32; }

}  // namespace

gpu::Panel Model::panel(const std::vector<const PackedLinear*>& readers) const {
    gpu::Panel panel = panel_;
    panel.columns = 0;
    bool integers = false, floats = false;
    for (const PackedLinear* one : readers) {
        panel.columns = std::max(panel.columns, one->matrix.columns);
        (is_quantized(one->matrix.format) ? integers : floats) = true;
    }
    if (!integers) panel.quants = nullptr;
    if (!floats) panel.values = nullptr;
    return panel;
}

void Model::project(const std::vector<Target>& targets, const gpu::Panel& panel, float divisor, int rows, Handle stream) const {
    std::vector<bool> done(targets.size());
    for (size_t i = 0; i < targets.size(); i++) {
        if (done[i]) continue;
        const Format format = targets[i].linear.matrix.format;
        gpu::LinearCall call{};
        int64_t warps = 0;
        for (size_t j = i; j < targets.size() && call.count < PRODUCTS; j++) {
            const PackedLinear& linear = targets[j].linear;
            if (done[j] || linear.matrix.format != format) continue;
            done[j] = true;
            call.products[call.count++] = {targets[j].out, weights_.of(linear.packed), weights_.of(linear.bias), matrix_of(linear.matrix)};
            warps += strips(linear.matrix);
        }
        call.panel = panel;
        call.tokens = rows;
        call.dtype = int(model_.dtype);
        call.divisor = divisor;
        const LinearKernels& kernels = linears_.at(format);
        launch(device_, rows > 8 ? kernels.many : kernels.few, warps, stream, call);
    }
}

void Model::fill(const void* x, int width, const gpu::Panel& panel, Handle stream) const {
    const gpu::GatherCall call{x, panel, rows_, width, int(model_.dtype)};
    for (const auto& [format, kernels] : linears_)  // one of each kind fills for all of it
        if (is_quantized(format) ? panel.quants != nullptr : panel.values != nullptr) {
            launch(device_, kernels.gather, int64_t(rows_) * (panel.columns / GROUP), stream, call);
            if (!panel.quants || !panel.values) return;
        }
}

gpu::AddNormCall Model::add_norm(const Norm& before, float scale, const Norm& after, const gpu::Panel& panel, int rows) const {
    const char* x = reinterpret_cast<const char*>(on_gpu(at_.x));
    gpu::AddNormCall call{};
    call.residual = x;
    call.part = part_;
    call.panel = panel;
    call.before = norm(before);
    call.after = norm(after);
    call.rows = rows;
    call.width = model_.before_head.width;
    call.dtype = int(model_.dtype);
    call.scale = scale;
    return call;
}

void Model::attend(const AttentionModule& module, const gpu::Panel& input, int layer, Handle stream) const {
    const Projections& from = projections_of(module);
    const int dtype = int(model_.dtype), rows = rows_;
    project({{from.query, query_}, {from.key, key_}, {from.value, value_}}, input, 1, rows, stream);
    const auto whole = [&](const Norm& norm, char* of, int heads) {  // of all heads' values together
        if (!norm.weight || norm.width == module.width) return NormPart{norm.weight ? this->norm(norm) : NormPart{}};
        const NormPart part = this->norm(norm);
        const gpu::NormCall call{of, part.weight, of, rows * (heads * module.width / norm.width), norm.width, dtype, norm.epsilon};
        launch(device_, rms_norm_, call.rows, stream, call);
        return NormPart{};
    };
    const auto* kept = reinterpret_cast<const KeptToken*>(on_gpu(at_.kept[layer]));
    const int kind = model_.rotations[layer];
    gpu::TurnCall turn{};
    turn.query_norm = whole(from.query_norm, query_, module.heads);
    turn.key_norm = whole(from.key_norm, key_, module.kv_heads);
    turn.norms_follow = from.norms_follow;
    turn.query = query_, turn.keys = key_, turn.values = value_;
    turn.kept = kept;
    turn.turning = int(module.rotary.turning);
    if (module.rotary.turning != Turning::none) {
        turn.cos = reinterpret_cast<const void*>(on_gpu(at_.cos[kind]));
        turn.sin = reinterpret_cast<const void*>(on_gpu(at_.sin[kind]));
    }
    turn.turned = module.rotary.width, turn.given = module.rotary.given, turn.rotary_dtype = int(module.rotary.dtype);
    turn.tokens = rows, turn.heads = module.heads, turn.kv_heads = module.kv_heads;
    turn.key_width = module.width, turn.value_width = module.value_width, turn.dtype = dtype;
    turn.value_scale = from.value_scale;
    launch(device_, turn_, int64_t(rows) * (module.heads + 2 * module.kv_heads), stream, turn);

    const int width = module.heads * module.value_width, parts = parts_[layer];
    gpu::Panel panel = this->panel({&module.out});
    const bool filled = module.value_width % GROUP == 0 && panel.columns == width;  // else by a kernel of its own
    const size_t a_token = attention_floats(module, parts);
    const int slice = std::max(1, int(std::min<size_t>(rows, attention_floats_ / a_token)));
    for (int first = 0; first < rows; first += slice) {
        const int count = std::min(slice, rows - first);
        const size_t items = size_t(count) * module.heads * parts;
        gpu::AttendCall call{};
        call.query = query_;
        call.keys = key_, call.values = value_;
        call.out = filled ? nullptr : mixed_;
        if (filled) call.panel = panel;
        call.kept = kept + first;
        call.sinks = weights_.of(module.sinks);
        call.scores = attention_;
        call.most = call.scores + items * PART;
        call.total = call.most + items;
        call.sums = call.total + items;
        call.tokens = count, call.parts = parts;
        call.heads = module.heads, call.kv_heads = module.kv_heads;
        call.key_width = module.width, call.value_width = module.value_width, call.dtype = dtype;
        call.scale = module.scale;
        launch(device_, attend_, int64_t(items), stream, call);
        launch(device_, merge_, int64_t(count) * module.heads, stream, call);
    }
    if (!filled) fill(mixed_, width, panel, stream);
    project({{module.out, part_}}, panel, 1, rows, stream);
}

void Model::compute(const Mlp& mlp, const gpu::Panel& input, void* out, Handle stream) const {
    const int width = mlp.down.columns;
    const size_t row_bytes = width * item_bytes(model_.dtype);
    const bool joined = mlp.first.size() == 1;
    if (joined) project({{mlp.first[0], first_}}, input, 1, rows_, stream);
    else project({{mlp.first[0], first_}, {mlp.first[1], first_ + rows_ * row_bytes}}, input, 1, rows_, stream);
    gpu::GateUpCall call{};
    call.gate = first_;
    call.up = first_ + (joined ? row_bytes : rows_ * row_bytes);
    call.panel = panel({&mlp.down});
    call.tokens = rows_, call.width = width, call.stride = joined ? 2 * width : width;
    call.dtype = int(model_.dtype), call.activation = int(mlp.activation);
    launch(device_, gate_up_, int64_t(rows_) * (call.panel.columns / GROUP), stream, call);
    project({{mlp.down, out}}, call.panel, 1, rows_, stream);
}

void Model::route(const Router& router, const Uploads& at, int64_t* ids, float* weights, Handle stream) const {
    const auto values = [&](const Values& of) { return at.of(static_cast<const char*>(of.at)); };
    gpu::RouteCall call{};
    call.x = normed_;
    call.weight = values(router.weight), call.bias = values(router.bias), call.correction = values(router.correction);
    call.products = products_, call.scores = scores_, call.ranks = ranks_;
    call.weights = weights, call.ids = ids;
    call.tokens = rows_, call.hidden = router.hidden, call.experts = router.experts, call.top_k = router.top_k;
    call.score = int(router.score), call.by_logit = router.by_logit;
    call.groups = router.groups, call.kept_groups = router.kept_groups, call.judged = router.judged, call.normalise = router.normalise;
    call.dtype = int(model_.dtype), call.weight_dtype = int(router.weight.dtype), call.bias_dtype = int(router.bias.dtype);
    call.correction_dtype = int(router.correction.dtype);
    call.rounded = int(router.rounded), call.logits_dtype = int(router.logits_dtype), call.weights_dtype = int(router.weights_dtype);
    call.epsilon = router.epsilon, call.floor = router.floor, call.scale = router.scale;
    launch(device_, route_products_, int64_t(rows_) * router.experts, stream, call);
    launch(device_, route_choose_, rows_, stream, call);
}

void Model::queue(int layer, bool foresee, Handle stream) const {
    const DecoderLayer& here = *model_.layers[layer];
    const DecoderLayer* before = layer ? model_.layers[layer - 1] : nullptr;
    const Projections& projections = projections_of(attention_of(here));
    end_layer(before, stream);
    gpu::AddNormCall entry = add_norm(before ? before->after_mlp : Norm{}, before ? before->residual_scale : 1, here.before_attention,
                                      panel({&projections.query, &projections.key, &projections.value}), rows_);
    char* x = reinterpret_cast<char*>(on_gpu(at_.x));
    if (before) entry.sum = x;
    else entry.part = nullptr;
    launch(device_, add_norm_, rows_, stream, entry);
    attend(attention_of(here), entry.panel, layer, stream);

    std::vector<const PackedLinear*> readers;
    if (here.mlp)
        for (const PackedLinear& one : here.mlp->first) readers.push_back(&one);
    const int moe = moe_[layer];
    gpu::AddNormCall middle = add_norm(here.after_attention, here.residual_scale, here.before_mlp, moe < 0 ? panel(readers) : experts_->input(moe), rows_);
    middle.sum = x;
    if (moe >= 0) middle.out = normed_;
    launch(device_, add_norm_, rows_, stream, middle);
    if (moe < 0) return compute(*here.mlp, middle.panel, part_, stream);
    route(*here.router, weights_, ids_, router_weights_, stream);
    int ahead = 0;
    if (foresee)
        for (const Router* router : foresight_[moe].routers) {
            route(*router, foresight_weights_, ahead_ + ahead, ahead_weights_, stream);
            ahead += rows_ * router->top_k;
        }
    const auto address = [](const void* of) { return reinterpret_cast<Address>(of); };
    const Posted posted{rows_, address(normed_), address(ids_), address(router_weights_), address(ahead_), ahead};
    experts_->post(posted, reinterpret_cast<const uint32_t*>(on_gpu(at_.base)), uint32_t(moe), stream);
    if (!here.mlp) return;
    const gpu::Panel own = panel(readers);  // the experts' serves as well, if it is as these linears read it
    const bool shares = !own.values && middle.panel.quants && own.columns <= middle.panel.columns;
    if (!shares) fill(normed_, here.hidden, own, stream);
    compute(*here.mlp, shares ? middle.panel : own, shared_, stream);
}

void Model::end_layer(const DecoderLayer* layer, Handle stream) const {
    if (!layer || !layer->router || !layer->mlp) return;
    gpu::ShareCall call{};
    call.part = part_;
    call.shared = shared_, call.x = normed_;
    call.gate = weights_.of(static_cast<const char*>(layer->shared_gate.at));
    call.tokens = rows_, call.hidden = layer->hidden;
    call.dtype = int(model_.dtype), call.gate_dtype = int(layer->shared_gate.dtype);
    launch(device_, share_, int64_t(rows_) * ((layer->hidden + 31) / 32), stream, call);
}

bool Model::dense(int layer, bool foresee) {
    const int moe = moe_.at(layer);
    foresee = foresee && moe >= 0 && foreseen(moe);
    if (rows_ > MOST_GRAPH_ROWS) queue(layer, foresee, stream_);
    else {
        Graph& graph = graphs_[{layer, rows_, parts_[layer], foresee}];
        if (!graph) graph = capture(device_, capturing_.get(), [&] { queue(layer, foresee, capturing_.get()); });
        graph.launch(stream_);
    }
    if (moe >= 0)
        experts_->expect(moe, rows_, reinterpret_cast<Address>(router_weights_), foresee ? rows_ * foreseen(moe) : 0, stream_,
                         first_number_ + uint32_t(moe));
    return moe >= 0;
}

void Model::head(Address logits) {
    const DecoderLayer& last = *model_.layers.back();
    end_layer(&last, stream_);
    gpu::AddNormCall call = add_norm(last.after_mlp, last.residual_scale, model_.before_head, panel({&model_.head}), wanted_);
    call.from = reinterpret_cast<const int*>(on_gpu(at_.wanted));
    launch(device_, add_norm_, wanted_, stream_, call);
    project({{model_.head, reinterpret_cast<void*>(logits)}}, call.panel, model_.logits_divisor, wanted_, stream_);
    find_highest(logits);
}

void Model::find_highest(Address logits) {
    found_.expected++;
    if (!wanted_ || wanted_ > MOST_HIGHEST_ROWS) return;
    gpu::HighestCall call = highest_call_;
    call.logits = reinterpret_cast<const void*>(logits);
    call.most = reinterpret_cast<const int*>(on_gpu(at_.most));
    call.rows = wanted_, call.width = model_.head.matrix.rows, call.dtype = int(model_.dtype);
    const int64_t pieces = int64_t(wanted_) * ((call.width + PIECE - 1) / PIECE), warps[] = {pieces, wanted_, pieces};
    for (int i = 0; i < 3; i++) launch(device_, highest_[i], warps[i], stream_, call);
    gpu::PostCall post{};
    const auto part = [&](int i, const void* from, void* to, int words) { post.from[i] = from, post.to[i] = to, post.words[i] = words; };
    part(0, call.ids, found_.ids, wanted_ * HIGHEST);
    part(1, call.values, found_.values, wanted_ * HIGHEST);
    part(2, call.counts, found_.counts, wanted_);
    post.flag = const_cast<uint32_t*>(found_.flag);
    post.number = found_.expected;
    launch(device_, post_, 1, stream_, post);
}

Model::Highest Model::highest(int row) const {
    if (row < 0 || row >= wanted_ || wanted_ > MOST_HIGHEST_ROWS) return {};
    wait_for(device_, found_.flag, found_.expected, stream_);
    const size_t at = size_t(row) * HIGHEST;
    return {found_.counts[row], found_.ids + at, found_.values + at};
}

std::vector<StepOutcome> Model::step(Planner& planner, const StepInput& input, Address logits, Handle stream) {
    start(input, stream);
    std::vector<StepOutcome> outcomes;
    for (int layer = 0; layer < layers(); layer++) {
        if (!dense(layer, planner.prefetches())) continue;
        const int moe = moe_[layer];
        const int later = foreseen(moe) ? moe + foresight_[moe].distance : 0;
        outcomes.push_back(experts_->finish(planner, later, 0, part()));
    }
    head(logits);
    return outcomes;
}

}  // namespace dali::gpu
