"""Recipes are complete configurations, named as they are called, and importable without torch."""

import subprocess
import sys

import pytest

from prunella import config_text, recipes
from prunella.errors import ConfigError


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_recipe_survives_the_trip_through_its_record(name):
    made = recipes.recipe(name)

    assert made.recipe == name
    assert config_text.from_mapping(config_text.to_mapping(made), name) == made


def test_demo_has_three_segments_on_two_nodes():
    demo = recipes.recipe("tiny_moe")

    assert (demo.segments, demo.total_steps, demo.nodes) == (3, 120, 2)
    assert demo.batch.global_sequences % demo.nodes == 0


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"expected one of tiny_moe, .*did you mean 'tiny_moe'"):
        recipes.recipe("tiny_mo")


def test_recipes_need_no_torch():
    code = "import sys; import prunella.recipes, prunella.model.accounting; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
