from assignment_cases import BY_HAND

from dali.policies import create
from dali.policies.plan import LayerPlan, ResidencyView

# Experts 1 and 4 resident, 2 landed, 5 in flight; 3 has no tokens.
WORKLOAD = [1, 2, 1, 0, 1, 3, 4]
VIEW = ResidencyView({1, 4}, {5: 0.5, 2: 0.0}, slots=4)


def plan(name, view=VIEW, layer=0, **options):
    return create("assign", name, **options).assign(layer, WORKLOAD, view, BY_HAND)


def test_cpu_takes_everything():
    assert plan("cpu") == LayerPlan((0, 1, 2, 4, 5, 6), (), ())


def test_gpu_takes_everything_longest_copy_first():
    assert plan("gpu") == LayerPlan((), (1, 4, 2, 5, 6, 0), (6, 0))


def test_gpu_without_a_slot_leaves_the_absent_to_the_cpu():
    assert plan("gpu", ResidencyView({1, 4})) == LayerPlan((0, 2, 5, 6), (1, 4), ())


def test_cpu_on_miss_fetches_nothing_and_counts_a_late_prefetch_as_a_miss():
    assert plan("cpu_on_miss") == LayerPlan((0, 5, 6), (1, 4, 2), ())


def test_layerwise_puts_the_first_layers_on_the_cpu():
    for layer, device in enumerate(["cpu", "cpu", "gpu", "gpu"]):
        assert plan("layerwise", layer=layer, cpu_layers=2) == plan(device)
