"""Images are upright and not mirrored, shown by projecting what the simulator knows."""

import numpy as np
import pytest

from vla_policy_node.world.libero_world import CAMERAS, LiberoWorld, tasks

# Objects of one colour: (object, what holds for its red, green, blue).
COLOURED = {
    'butter_1': lambda r, g, b: r > 140 and g > 0.8 * r and b < 0.7 * r,
    'ketchup_1': lambda r, g, b: r > 100 and r > 1.8 * g,
    'orange_juice_1': lambda r, g, b: r > 150 and 0.3 * r < g < 0.8 * r and b < 0.6 * r,
}


@pytest.fixture(scope='module')
def world():
    (task,) = (task for task in tasks('libero_object') if 'butter' in task.name)
    world = LiberoWorld(task, (320, 256))
    yield world
    world.close()


def project(world: LiberoWorld, camera: str, point: np.ndarray) -> np.ndarray:
    right, down, depth = world.camera_matrix(camera) @ np.append(point, 1)
    assert depth > 0
    return np.array([right, down]) / depth


@pytest.mark.parametrize('name', COLOURED)
def test_an_object_is_seen_where_it_projects(world, name):
    image = world.render()['third_person']
    right, down = project(world, 'third_person', world.object_position(name)).astype(int)
    patch = image[down - 1 : down + 2, right - 1 : right + 2].reshape(-1, 3).mean(axis=0)
    assert COLOURED[name](*patch), patch
    mirrored = image[:, ::-1][down, right]
    assert not COLOURED[name](*mirrored.astype(float)), 'the test could not tell a mirrored image'


def test_the_wrist_camera_agrees_with_its_matrix(world):
    image = world.render()['wrist'].astype(float)
    right, down = project(world, 'wrist', world.object_position('butter_1')).astype(int)
    assert 0 <= down < 256
    assert 0 <= right < 320
    assert COLOURED['butter_1'](*image[down, right])


def test_up_is_up_and_left_is_left(world):
    centre = world.object_position('butter_1')
    here = project(world, 'third_person', centre)
    above = project(world, 'third_person', centre + (0, 0, 0.05))
    beside = project(world, 'third_person', centre + (0, 0.05, 0))
    assert above[1] < here[1]
    assert beside[0] > here[0]


def test_liberos_raw_image_is_upside_down_and_the_oft_turn_mirrors(world):
    """Raw rows run upwards; turned by 180 degrees the image is ours, mirrored left to right."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    ours = world.render()
    simulation = world._env.sim
    context = MjRenderContextOffscreen(simulation, device_id=-1)
    context.vopt.geomgroup[0] = 0
    for name, camera in CAMERAS.items():
        context.render(320, 256, world.model.camera(camera).id)
        raw = context.read_pixels(320, 256)
        turned = raw[::-1, ::-1]
        assert np.abs(raw[::-1].astype(int) - ours[name]).mean() < 2
        assert np.abs(turned.astype(int) - ours[name][:, ::-1]).mean() < 2
        assert np.abs(turned.astype(int) - ours[name]).mean() > 10


def test_images_are_what_was_asked_for(world):
    images = world.render()
    assert list(images) == list(CAMERAS)
    for image in images.values():
        assert image.shape == (256, 320, 3)
        assert image.dtype == np.uint8
        assert image.std() > 20, 'blank'


def test_two_cameras_do_not_share_a_buffer(world):
    first = world.render()
    kept = first['wrist'].copy()
    world.step(np.array([0, 0, -1, 0, 0, 0, -1.0]))
    world.render()
    assert np.array_equal(first['wrist'], kept)
    assert not np.array_equal(first['third_person'], first['wrist'])
