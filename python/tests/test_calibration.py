"""What scales a model's odds is kept with it, and used as far as it is asked for."""

import pytest
from omop_gpt.calibration import Calibration
from omop_gpt.mask import Mask
from omop_gpt.sampler import SampleConfig

WHOLE = Calibration(
    novelty={"condition_occurrence": [0.5, 1.5, -0.25]},
    seasons={"condition:4001": [0.1] * 12},
    stays={"visit:9201": [-3.0, 0.125, 0, 0, 0, 0, 0, 0]},
)


def test_it_is_kept_and_a_folder_without_it_leaves_all_as_it_is(tmp_path):
    assert Calibration.read(tmp_path) == Calibration()
    WHOLE.write(tmp_path)
    assert Calibration.read(tmp_path) == WHOLE
    (tmp_path / "stays.json").unlink()  # a model of an earlier version
    found = Calibration.read(tmp_path)
    assert (found.novelty, found.stays) == (WHOLE.novelty, {})


@pytest.mark.parametrize("name", ["novelty", "seasons", "stays"])
def test_each_part_is_used_where_it_is_there_and_wanted(many_events, name):
    def used(calibration, **flags):
        config = SampleConfig(
            model_folder="", output_folder="", num_of_patients=1, **flags
        )
        mask = Mask(many_events, rows=1)
        return [type(p) for p in calibration.processors(config, many_events, mask)]

    alone = used(Calibration(**{name: getattr(WHOLE, name)}))
    assert len(alone) == 1
    assert len(used(WHOLE)) == 3
    assert used(Calibration()) == []
    without = used(WHOLE, **{f"scale_{name}": False})
    assert without == [part for part in used(WHOLE) if part not in alone]
