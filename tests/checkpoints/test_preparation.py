"""How images are prepared follows what is stated, at the size of the network, and says what nobody stated."""

import pytest

from dse_monitor.checkpoints.families.network import Network, NotThisNetwork, Stated
from dse_monitor.checkpoints.recognition.preparation import preprocessing
from dse_monitor.errors import AmbiguousArchitecture
from dse_monitor.tokens import Tokens

pytestmark = pytest.mark.fast


def network(size=(224, 224), channels=3):
    def tokens(module, images, layer):
        return Tokens(images)

    return Network(
        family="vit",
        description="x",
        build=lambda: None,
        tensors={"x": (1,)},
        tokens=tokens,
        grid=(14, 14),
        width=8,
        channels=channels,
        image_size=size,
    )


def prepared(size=(224, 224), channels=3, **stated):
    values = {name: Stated(value, f"{name} somewhere") for name, value in stated.items()}
    return preprocessing(network(size, channels), values)


def test_what_nobody_states_is_imagenets_and_says_so():
    made, facts = prepared()
    assert made.mean == (0.485, 0.456, 0.406)
    assert (made.interpolation, made.crop_mode, made.covered) == ("bicubic", "center", (256, 256))
    assert [fact.name for fact in facts] == ["mean", "std", "interpolation", "crop", "resize"]
    assert all(fact.assumed and fact.source for fact in facts)


def test_what_is_stated_is_used_and_names_its_place():
    made, facts = prepared(mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=0.9)
    assert (made.mean, made.std, made.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bilinear")
    assert made.covered == (248, 248)  # as timm rounds it
    assert {fact.name: fact.source for fact in facts if not fact.assumed} == {
        "mean": "mean somewhere",
        "std": "std somewhere",
        "interpolation": "interpolation somewhere",
        "resize": "crop_pct somewhere",
    }


def test_squashed_pictures_are_cut_only_where_a_larger_size_is_stated():
    made, facts = prepared(crop_mode="squash")
    assert made.covered == (224, 224)
    assert "without keeping its ratio" in next(fact.value for fact in facts if fact.name == "crop")
    assert "resize" not in [fact.name for fact in facts]
    made, facts = prepared(crop_mode="squash", resize=(256, 256))
    assert (made.covered, made.image_size) == ((256, 256), (224, 224))
    assert next(fact for fact in facts if fact.name == "resize").source == "resize somewhere"


@pytest.mark.parametrize(
    ("size", "covered"), [((224, 224), (256, 256)), ((518, 518), (592, 592)), ((112, 112), (128, 128))]
)
def test_a_resizing_for_a_crop_of_another_size_keeps_its_proportion(size, covered):
    made, _ = prepared(size, resize=(256, 256), image_size=(224, 224))
    assert (made.image_size, made.covered) == (size, covered)


def test_a_resizing_smaller_than_the_images_does_not_break_them():
    made, _ = prepared((384, 384), resize=(256, 256))
    assert made.covered == (384, 384)
    assert prepared((8, 8), resize=(60_000, 60_000), image_size=(1, 1))[0].covered == (9, 9)


def test_one_number_stands_for_all_channels():
    made, _ = prepared(channels=5, mean=(0.5,), std=(0.25,))
    assert (made.mean, made.std) == ((0.5,) * 5, (0.25,) * 5)


@pytest.mark.parametrize("stated", [{}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}])
def test_statistics_of_other_channels_are_refused(stated):
    with pytest.raises(AmbiguousArchitecture, match=r"takes 4 channels.*--mean and --std"):
        prepared(channels=4, **stated)


def test_two_places_alike_that_disagree_are_refused():
    rival = {"mean": Stated((0.5,) * 3, "a.mean in the file", "b.mean in the file says 0.1, 0.1, 0.1")}
    with pytest.raises(AmbiguousArchitecture, match=r"disagree about mean: a\.mean.*b\.mean.*--mean"):
        preprocessing(network(), rival)


def test_images_in_another_order_of_colours_are_refused():
    assert prepared(channel_order="RGB")
    with pytest.raises(NotThisNetwork, match="BGR"):
        prepared(channel_order="BGR")
