// Which instruction sets this build and this CPU have, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "kernels/variant.h"

namespace dali {

std::vector<const Variant*> usable_variants();  // best first
const Variant& current_variant();               // the best, unless another was chosen
bool choose_variant(const std::string& name);   // false if there is none of that name here

}  // namespace dali
