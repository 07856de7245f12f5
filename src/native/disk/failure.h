// What keeps a model's experts from being read.
#pragma once

#include <stdexcept>
#include <string>

namespace dali {

// what(): what is wrong, in words that follow "Cannot use the expert store ...: ".
struct StoreFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
    std::string path;  // of the store, where it is known
};

}  // namespace dali
