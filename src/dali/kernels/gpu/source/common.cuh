// What all layouts share.
#pragma once

#include "join.cuh"
#include "post.cuh"
