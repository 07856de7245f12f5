#include "plan/dependencies.h"

#include <algorithm>

namespace nb = nanobind;

namespace dali {

namespace {

int64_t count(const Clock& clock, size_t stream) { return stream < clock.size() ? clock[stream] : 0; }

bool includes(const Clock& clock, const Issued& operation) { return operation.index < count(clock, operation.stream); }

void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t stream = 0; stream < other.size(); stream++) clock[stream] = std::max(clock[stream], other[stream]);
}

void read(nb::handle keys, std::vector<uint64_t>& into) {
    into.clear();
    const nb::object fast = nb::steal(PySequence_Fast(keys.ptr(), "keys are a collection"));
    if (!fast.is_valid()) throw nb::python_error();
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    for (Py_ssize_t i = 0, n = PySequence_Fast_GET_SIZE(fast.ptr()); i < n; i++) into.push_back(nb::cast<uint64_t>(nb::handle(items[i])));
}

}  // namespace

void Dependencies::derive(nb::handle operation, nb::handle reads, nb::handle writes) {
    read(reads, reads_);
    read(writes, writes_);
    const size_t stream = nb::cast<size_t>(operation.attr("stream").attr("number"));
    if (streams_.size() <= stream) streams_.resize(stream + 1);
    Clock clock = streams_[stream];
    if (clock.size() <= stream) clock.resize(stream + 1);
    join(clock, host_);

    find(reads_, writes_, clock);
    nb::list waits;
    // Newest first: what a newer operation waited for comes with it, never the other way round.
    for (const Access& earlier : found_) {
        if (includes(clock, *earlier.issued)) continue;
        join(clock, earlier.issued->clock);
        if (derived_++ != drop_) waits.append(earlier.operation);
    }
    found_.clear();
    if (waits.size()) operation.attr("waits") = nb::tuple(waits);

    const int64_t index = clock[stream]++;
    streams_[stream] = clock;
    nb::object known = nb::cast(Issued{issued_, stream, index, std::move(clock)});
    const Access access{nb::borrow(operation), nb::inst_ptr<Issued>(known)};
    operation.attr("number") = issued_++;
    operation.attr("clock") = known;

    for (const uint64_t key : reads_) {
        std::vector<Access>& readers = buffers_[key].readers;
        const auto own = std::find_if(readers.begin(), readers.end(), [&](const Access& one) { return one.issued->stream == stream; });
        if (own == readers.end()) readers.push_back(access);
        else *own = access;
    }
    for (const uint64_t key : writes_) buffers_[key] = Buffer{access, {}};
}

// Fills `found_`.
void Dependencies::find(const Keys& reads, const Keys& writes, const Clock& seen) {
    found_.clear();
    const Issued* last = nullptr;  // slots side by side mostly share their writer
    const auto add = [&](const Access& access) {
        if (access.issued == last) return;
        last = access.issued;
        if (!includes(seen, *last)) found_.push_back(access);
    };
    const auto add_writer = [&](uint64_t key) -> Buffer* {
        const auto place = buffers_.find(key);
        if (place == buffers_.end()) return nullptr;
        Buffer& buffer = place->second;
        if (!buffer.writer.issued) return &buffer;
        if (!includes(host_, *buffer.writer.issued)) {
            add(buffer.writer);
            return &buffer;
        }
        buffer.writer = {};  // before all that comes
        if (!buffer.readers.empty()) return &buffer;
        buffers_.erase(place);
        return nullptr;
    };
    for (const uint64_t key : reads) add_writer(key);
    for (const uint64_t key : writes)
        if (const Buffer* buffer = add_writer(key))
            for (const Access& reader : buffer->readers) add(reader);
    std::sort(found_.begin(), found_.end(), [](const Access& a, const Access& b) { return a.issued->number > b.issued->number; });
    const auto same = [](const Access& a, const Access& b) { return a.issued == b.issued; };
    found_.erase(std::unique(found_.begin(), found_.end(), same), found_.end());
}

nb::list Dependencies::before(nb::handle reads, nb::handle writes) {
    read(reads, reads_);
    read(writes, writes_);
    find(reads_, writes_, host_);
    nb::list operations;
    for (const Access& access : found_) operations.append(access.operation);
    found_.clear();
    return operations;
}

void Dependencies::host_waited(nb::handle operation) {
    const nb::object known = operation.attr("clock");
    const Issued& issued = *nb::inst_ptr<Issued>(known);
    if (!includes(host_, issued)) join(host_, issued.clock);
}

void Dependencies::forget(nb::handle keys) {
    read(keys, reads_);
    for (const uint64_t key : reads_) buffers_.erase(key);
}

size_t Dependencies::remembered() const {
    size_t total = 0;
    for (const auto& [key, buffer] : buffers_) total += buffer.readers.size() + (buffer.writer.issued != nullptr);
    return total;
}

}  // namespace dali
