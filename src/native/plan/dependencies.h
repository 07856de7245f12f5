// What must run before what, derived from the buffers that operations declare: src/dali/devices/dependencies.py, which says what
// is derived and why, in compiled form.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace dali {

using Clock = std::vector<int64_t>;  // by stream: how many of its operations have gone before

// What is known of an operation once it has been issued.
struct Issued {
    int64_t number;  // place among all operations
    size_t stream;
    int64_t index;  // place in its stream
    Clock clock;    // what has gone before by the time it ends, itself included
};

class Dependencies {
  public:
    explicit Dependencies(std::optional<int64_t> drop) : drop_(drop.value_or(-1)) {}

    // `reads`, `writes`: collections of buffers' keys. Sets the operation's `number`, `clock` and, if there are any, `waits`.
    void derive(nanobind::handle operation, nanobind::handle reads, nanobind::handle writes);
    // What must come before such accesses and the host has not waited for, newest first.
    nanobind::list before(nanobind::handle reads, nanobind::handle writes);
    void host_waited(nanobind::handle operation);
    void forget(nanobind::handle keys);

    int64_t derived() const { return derived_; }
    // Operations that are remembered, one for each access to a buffer.
    size_t remembered() const;

  private:
    struct Access {
        nanobind::object operation;
        const Issued* issued = nullptr;  // its `clock`: it keeps that alive
    };
    struct Buffer {
        Access writer;                // the last one, if any
        std::vector<Access> readers;  // since then, each stream's latest
    };
    using Keys = std::vector<uint64_t>;

    void find(const Keys& reads, const Keys& writes, const Clock& seen);

    int64_t drop_, derived_ = 0, issued_ = 0;
    Clock host_;  // what the host has waited for goes before all it issues from then on
    std::vector<Clock> streams_;
    std::unordered_map<uint64_t, Buffer> buffers_;
    Keys reads_, writes_;        // of the present call: kept for their memory
    std::vector<Access> found_;  // likewise; newest first
};

}  // namespace dali
