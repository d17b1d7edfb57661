"""One seed, thread and empty compiler for every test, and images on disk.

Small nets are slower on more threads.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import TABLES
from PIL import Image

from lowtide.methods import METHODS

Paint = Callable[..., Path]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:  # what was compiled decides what is compiled after it
        torch._dynamo.reset()


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Write noise as an image below `tmp_path`; the same name gives the same pixels."""

    def paint(*names: str, size: tuple[int, int] = (20, 16)) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng(zlib.crc32(name.encode()))
            width, height = size
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path

    return paint


TRAINS = {
    "test_a_notebook_runs[comparing-methods.ipynb]",
    "test_a_notebook_runs[own-photographs.ipynb]",
    "test_commands_of_a_tutorial_run_in_their_order[large-images.md]",
    "test_commands_of_a_tutorial_run_in_their_order[one-backbone.md]",
    "test_the_readmes_commands_run_in_their_order",
    "test_a_rate_is_chosen_on_val_and_the_result_is_learnt_on_all_but_test",
    "test_changes_of_a_run_that_folds_are_those_of_the_merged_weights",
    "test_linear_probe_on_digits_beats_random_weights",
    "test_a_memory_budget_decides_what_is_kept",
    "test_pictures_are_drawn_and_are_the_same_every_time",
    "test_what_a_memory_budget_decided_is_no_other_option",
}
PLANS_BY_THE_DOZEN = {
    "test_frozen_weights_in_bf16_take_half",
    "test_nothing_fits_is_one_line_with_the_smallest_peak",
    "test_plan_is_close_in_mixed_precision",
    "test_the_search_finds_what_trying_everything_finds",
    "test_what_one_step_lower_takes_is_said",
    "test_the_memory_table[bias-s2a-2000]",
    "test_blocks_that_are_recomputed_from_8_bits_stay_below_their_promise",
    "test_tight_stays_below_its_promise",
    "test_the_released_networks_have_the_counts_that_the_paper_reports",
    "test_temporaries_grow_as_the_image_and_not_as_its_square[sam]",
}
RUNS_EVERY_METHOD_ON_MANY_BACKBONES = {
    "test_generated_page_is_fresh[methods.md]",
    "test_sites_cover_real_architectures",
}
COMPILES = {  # the same laws hold on a ViT in the short suite
    "test_compiles_without_a_break[resnet-tight]",
    "test_compiles_without_a_break[swin-tight]",
    "test_everything_at_once_compiles_without_a_break[lora-nf4]",
    "test_everything_at_once_compiles_without_a_break[bias-bf16]",
}
STARTS_PROCESSES = {
    "test_a_server_from_start_to_end",
    "test_each_row_may_use_several_processes",
    "test_rows_run_on_a_ray_cluster",
    # A browser is a process of its own.
    "test_a_person_drops_an_image_and_picks_a_task",
    "test_pictures_and_curves_are_seen_in_a_browser",
    "test_equal_to_the_definitions",
    "test_the_process_never_holds_the_wide_model",
    "test_two_processes",
    "test_two_processes_train_what_one_would",
}
DENSE = {  # a run of the other task, and of the other methods, is the same in the short suite
    "test_methods_train_their_part_and_the_rest_whole[segment-full]",
    "test_methods_train_their_part_and_the_rest_whole[segment-ssf]",
    "test_a_folded_run_answers_as_the_run_does",
}
PARTS_OF_MODELS = {  # each of these is like another one in the short suite
    *(
        f"test_it_trains_saves_loads_and_merges[{kind}-ssf]"
        for kind in ("ssd", "lraspp", "smp_timm", "smp_mit", "smp_padded", "rt_detr", "retina_net")
    ),
    *(
        f"test_a_segmenters_plan_equals_the_real_step[{kind}-{policy}]"
        for kind in ("smp_timm", "segformer")
        for policy in ("exact", "tight")
    ),
    "test_it_trains_saves_loads_and_merges[timm_efficientnet-ssf]",
    "test_it_trains_saves_loads_and_merges[smp_padded-lora]",
    "test_it_trains_saves_loads_and_merges[smp_timm-fact_tk]",
    "test_outputs_start_unchanged_and_compression_changes_none[mask_rcnn]",
    "test_a_detectors_plan_is_a_step_with_as_many_boxes_as_it_takes",
    "test_the_code_of_the_page_of_parts_runs",
}
ENDS_AS_ANOTHER_ONE_DOES = {  # what each of these holds, a cheaper one of the short suite holds too
    *(
        f"test_a_plan_of_many_pieces_is_the_real_step[{kind}]"
        for kind in ("sam-fp32", "vit-nf4", "convnext-nf4")
    ),
    *(
        f"test_detectors_learn_from_one_image_at_a_time[{kind}]"
        for kind in ("tight-retinanet", "tight-fasterrcnn", "exact-fcos", "exact-fasterrcnn")
    ),
    *(
        f"test_parts_are_switched_by_themselves_and_add_up[{kind}]"
        for kind in ("swin", "convnext", "convnext preset")
    ),
    *(
        f"test_a_plan_is_the_step[{kind}]"
        for kind in ("segment-options3-exact", "detect-options4-exact", "detect-options5-tight")
    ),
    *(
        f"test_methods_train_their_part_and_the_rest_whole[{kind}]"
        for kind in ("detect-bias", "segment-s2a")
    ),
    *(
        f"test_the_printed_line_loads_the_model_as_it_was_trained[{kind}]"
        for kind in ("test_convnext-96", "vit_micro_patch4_32-40")
    ),
    "test_a_batch_cut_by_images_holds_all_and_one_run_whole_does_not",
    "test_a_chunk_is_what_runs_at_once",
    "test_a_convolution_behind_a_norm_reads_the_codes_in_front_of_it[True]",
    "test_a_graph_answers_as_the_run[onnx-dtl]",
    "test_a_killed_run_continues_to_the_same_weights",
    "test_a_killed_run_goes_between_its_start_and_its_end_as_well",
    "test_a_killed_run_keeps_what_the_whole_one_does",
    "test_a_mixed_run_needs_what_was_planned_and_learns[3]",
    "test_a_row_run_again_is_the_same",
    "test_a_run_from_features_is_the_same_run[dtl]",
    "test_a_run_is_uploaded_with_its_card_and_comes_back",
    "test_a_run_that_draws_is_resumed_as_it_would_have_gone_on",
    "test_a_run_that_was_begun_before_there_was_a_choice_goes_on",
    "test_an_installed_package_offers_its_methods",
    "test_answers_to_a_full_disk_are_one_line",
    "test_changes_of_a_run_that_does_not_fold_start_at_its_initialisation",
    "test_everything_at_once_compiles_without_a_break[bias-nf4]",
    "test_imagenet_c_is_scored_and_not_trained_on",
    "test_later_runs_find_the_features_of_the_same_layers",
    "test_mixed_precision_learns_and_keeps_the_best_epoch[detect]",
    "test_no_difference_is_found_too_often",
    "test_registries_and_command_line_find_the_examples",
    "test_rows_find_the_features_of_earlier_ones",
    "test_the_command_prints_what_fits",
    "test_the_laws_meet_the_examples",
    "test_the_memory_table[bias-tight-600]",
    "test_the_search_never_cuts_where_that_changes_what_trains",
    "test_tsne_of_several_runs_shows_the_same_images",
    "test_under_autocast_with_frozen_weights_in_bf16_and_compiled",
    "test_updates_in_backward_and_all_weights_are_kept_as_well",
    "test_what_is_printed_says_how_far_it_went",
    "test_what_promises_no_start_at_the_backbone_has_none_somewhere",
}
SLOW = {
    *DENSE,
    *ENDS_AS_ANOTHER_ONE_DOES,
    *PARTS_OF_MODELS,
    "test_the_matrix_is_never_there",
    *TRAINS,
    *PLANS_BY_THE_DOZEN,
    *RUNS_EVERY_METHOD_ON_MANY_BACKBONES,
    *COMPILES,
    *STARTS_PROCESSES,
}
"""What took most of the suite's time when each test's processor time was measured."""
THINNED = {
    ("methods", "test_methods.py"): 7,
    ("memory", "test_gradient_checkpointing.py"): 5,
    ("planning", "test_plan.py"): 5,
    ("multi_adapter", "test_multi_adapter.py"): 5,
}
ONE_CASE_IN = {
    "test_a_checkpoint_that_says_something_else_is_refused": 4,
    "test_a_copy_of_any_family_is_the_same": 3,
    "test_a_flipped_bit_of_an_adapter_is_seen": 3,
    "test_a_full_disk_is_one_line_and_leaves_what_was_there": 2,
    "test_a_graph_answers_as_the_run": 3,
    "test_a_model_in_few_bits_is_the_rounded_one": 4,
    "test_a_model_that_is_tuned_already_is_planned_as_it_is": 3,
    "test_a_plan_is_the_step": 3,
    "test_a_plan_is_the_step_on_its_logits": 3,
    "test_a_run_from_features_is_the_same_run": 2,
    "test_a_run_of_another_task_from_start_to_answer": 2,
    "test_a_run_with_a_users_own_method": 2,
    "test_a_segmenters_plan_equals_the_real_step": 2,
    "test_an_activation_that_is_written_out_keeps_what_the_function_does": 4,
    "test_changes_are_gathered_by_kind_over_blocks": 3,
    "test_codes_that_lose_nothing_give_the_exact_gradient": 3,
    "test_compiles_without_a_break": 6,
    "test_counts_on_as_mlp_b": 3,
    "test_detectors_learn_from_one_image_at_a_time": 2,
    "test_every_pair_runs_or_refuses": 3,
    "test_every_policy_reads_its_weights_before_they_change": 4,
    "test_fake_equals_real_to_the_byte": 3,
    "test_going_on_from_features_is_the_same_as_from_images": 4,
    "test_it_is_the_model_that_is_packed_afterwards": 3,
    "test_it_trains_round_trips_and_merges": 4,
    "test_it_trains_saves_loads_and_merges": 4,
    "test_merged_checkpoint_loads_in_plain_timm": 2,
    "test_methods_that_exist_apply_with_a_recipes_options": 3,
    "test_no_policy_keeps_more_than_exact": 4,
    "test_noise_is_drawn_once_and_statistics_move_once": 3,
    "test_nothing_is_said_where_all_is_reached": 3,
    "test_on_the_recipes_own_backbone_the_published_count_trains": 3,
    "test_outputs_do_not_change_and_the_gradient_stays_close": 3,
    "test_plan_equals_the_real_step": 3,
    "test_plan_equals_the_real_step_that_recomputes_blocks": 3,
    "test_plan_equals_the_real_step_with_frozen_weights_in_few_bits": 4,
    "test_ssf_finds_every_norm": 3,
    "test_steps_compose_to_the_forward_of_real_architectures": 4,
    "test_the_backbone_is_found_and_its_table_with_it": 3,
    "test_the_best_epochs_weights_are_saved": 2,
    "test_the_end_is_kept_unless_a_point_before_it_is_better_by_a_standard_error": 4,
    "test_the_initialisation_is_the_run_s_own": 2,
    "test_the_model_with_its_probe_answers_as_the_probe_does": 2,
    "test_the_plan_in_chunks_is_the_real_step": 2,
    "test_the_plan_is_that_of_the_real_step": 4,
    "test_the_printed_line_loads_the_model_as_it_was_trained": 3,
    "test_two_methods_compose": 4,
    "test_what_a_model_keeps_of_an_answer_stands_in_no_way": 2,
    "test_what_starts_at_a_probe_beside_a_backbone_answers_as_it": 2,
}
"""Laws of many cases that take long: the short suite has every so many of what is left of them."""
HERE = Path(__file__).resolve().parent
RANKS = {name: i for names in (sorted(METHODS), sorted(TABLES)) for i, name in enumerate(names)}


def _left_out(item: pytest.Item) -> bool:
    """Whether the short suite leaves a test out.

    Of a law over methods and families, or over two methods, it has every fifth pair (of a method's
    own laws every seventh), so that each name is there with a fifth of the others.
    """
    if SLOW & {item.name, getattr(item, "originalname", "")}:
        return True
    params = getattr(getattr(item, "callspec", None), "params", {})
    pair = [params.get(a, params.get(b)) for a, b in (("name", "first"), ("family", "second"))]
    share = THINNED.get(item.path.parts[-2:], 1)
    return None not in pair and sum(RANKS.get(name, 0) for name in pair) % share != 0


def _names_of_no_test(items: list[pytest.Item]) -> list[str]:
    """What is named above and is not there; of cases, where their test was collected."""
    files = [*HERE.rglob("test_*.py")]
    written = "".join(path.read_text(encoding="utf-8") for path in files)
    functions = {getattr(item, "originalname", "") for item in items}
    cases = {item.name for item in items}
    lost = ["/".join(parts) for parts in THINNED if HERE.joinpath(*parts) not in files]
    for name in sorted(SLOW | ONE_CASE_IN.keys()):
        function, case, _ = name.partition("[")
        gone = f"def {function}(" not in written
        if gone or (case and function in functions and name not in cases):
            lost.append(name)
    return lost


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    whole = [Path(arg).resolve() for arg in config.args] == [HERE]
    if whole and (lost := _names_of_no_test(items)):
        raise pytest.UsageError(f"{Path(__file__).name} names what is no test: {', '.join(lost)}")
    cases: Counter[tuple[Path, str]] = Counter()
    for item in items:
        if _left_out(item):
            item.add_marker("slow")
        elif (law := getattr(item, "originalname", "")) in ONE_CASE_IN:
            if cases[item.path, law] % ONE_CASE_IN[law]:
                item.add_marker("slow")
            cases[item.path, law] += 1
