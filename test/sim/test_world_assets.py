"""Generated meshes and textures, the lighter Panda, and the safe reader of initial states."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from vla_policy_node.world import assets
from vla_policy_node.world.initial_states import read_init_file
from vla_policy_node.world.meshes import box, lathe, merge, write_obj
from vla_policy_node.world.mjcf import about, product, rotated
from vla_policy_node.world.panda import build_robosuite_assets
from vla_policy_node.world.textures import Atlas

MODELS = ('robots/panda/robot.xml', 'grippers/panda_gripper.xml', 'mounts/rethink_mount.xml')


def outward(mesh) -> np.ndarray:
    """Return the cosine between each face's winding and its vertices' normals."""
    corners = mesh.vertices[mesh.faces]
    winding = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    large = np.linalg.norm(winding, axis=1) > 1e-12
    winding = winding[large] / np.linalg.norm(winding[large], axis=1, keepdims=True)
    return np.sum(winding * mesh.normals[mesh.faces[large]].mean(axis=1), axis=1)


def test_faces_wind_the_way_their_normals_point():
    red = Atlas().plain((255, 0, 0))
    outside = lathe([(0.03, 0.0), (0.03, 0.1)], red)
    inside = lathe([(0.03, 0.1), (0.03, 0.0)], red)
    cube = box((1, 1), (0.5, 0.5), (0, 1), {'side': red})
    for mesh in (outside, inside, cube):
        assert outward(mesh).min() > 0.7
    radial = outside.vertices[:, :2] / 0.03
    assert np.allclose(outside.normals[:, :2], radial, atol=1e-6)
    assert np.allclose(inside.normals[:, :2], -radial, atol=1e-6)


def test_a_box_has_the_volume_of_a_box():
    red = Atlas().plain((255, 0, 0))
    cube = box((0.1, 0.2), (0.1, 0.2), (0.0, 0.3), {'side': red})
    solid = trimesh.Trimesh(cube.vertices, cube.faces)
    assert solid.volume == pytest.approx(0.2 * 0.4 * 0.3)


def test_a_label_reads_from_left_to_right_on_the_front():
    atlas = Atlas()
    label = atlas.drawn(64, (255, 255, 255), lambda canvas, width, height: None)
    front = lathe([(1.0, 0.0), (1.0, 1.0)], label)
    facing = front.vertices[:, 0] > 0.9
    across, upward = front.vertices[facing, 1], front.vertices[facing, 2]
    u, v = front.coordinates[facing].T
    assert np.corrcoef(across, u)[0, 1] > 0.99
    assert np.corrcoef(upward, v)[0, 1] > 0.99


def test_rows_of_an_atlas_do_not_overlap():
    atlas = Atlas()
    first, second = atlas.plain((1, 2, 3)), atlas.plain((4, 5, 6))
    corner = np.zeros((1, 2))
    assert first.map(corner)[0, 1] == pytest.approx(0.75)
    assert second.map(corner)[0, 1] == pytest.approx(0.25)


def test_merged_mesh_survives_the_obj_file(tmp_path):
    red = Atlas().plain((255, 0, 0))
    mesh = merge([lathe([(0.1, 0), (0.1, 1)], red), box((1, 1), (1, 1), (0, 1), {'side': red})])
    write_obj(tmp_path / 'mesh.obj', mesh)
    loaded = trimesh.load(tmp_path / 'mesh.obj', force='mesh', process=False)
    assert len(loaded.faces) == len(mesh.faces)
    assert np.allclose(loaded.bounds, [mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])


def test_quaternions_turn_as_the_right_hand_rule_says():
    assert np.allclose(rotated((1, 0, 0), about('z', np.pi / 2)), (0, 1, 0))
    both = product(about('x', np.pi / 2), about('z', np.pi / 2))
    assert np.allclose(rotated((1, 0, 0), both), (0, 0, 1))


def test_generated_assets_are_the_same_every_time(tmp_path):
    for name in ('first', 'second'):
        assets.build_assets(tmp_path / name)
    files = [path for path in (tmp_path / 'first').rglob('*') if path.is_file()]
    assert len(files) > 50
    for file in files:
        twin = tmp_path / 'second' / file.relative_to(tmp_path / 'first')
        assert file.read_bytes() == twin.read_bytes(), file.name


@pytest.fixture
def robot_assets(tmp_path) -> Path:
    """Return a folder laid out like robosuite's, with spheres for meshes."""
    source = tmp_path / 'source'
    model = (
        '<mujoco><asset>'
        '<mesh name="seen" file="meshes/seen.stl"/><mesh name="felt" file="meshes/felt.stl"/>'
        '</asset><worldbody>'
        '<geom mesh="seen" type="mesh" group="1" contype="0" conaffinity="0"/>'
        '<geom mesh="felt" type="mesh" group="0"/>'
        '</worldbody></mujoco>'
    )
    for path in MODELS:
        meshes = (source / path).parent / 'meshes'
        meshes.mkdir(parents=True)
        (source / path).write_text(model)
        for name in ('seen', 'felt'):
            trimesh.creation.icosphere(5).export(meshes / f'{name}.stl')
    return source


def test_only_visual_meshes_are_reduced_and_the_source_is_untouched(robot_assets, tmp_path):
    before = {path: path.read_bytes() for path in robot_assets.rglob('*') if path.is_file()}
    target = tmp_path / 'target'
    build_robosuite_assets(robot_assets, target)
    assert {path: path.read_bytes() for path in before} == before
    for folder in ('robots/panda', 'grippers', 'mounts'):
        seen = trimesh.load(target / folder / 'meshes' / 'seen.stl')
        felt = trimesh.load(target / folder / 'meshes' / 'felt.stl')
        assert len(felt.faces) == 20480
        assert len(seen.faces) == pytest.approx(0.12 * 20480, rel=0.05)
        assert np.allclose(seen.bounds, felt.bounds, atol=0.02)


class _Command:
    def __reduce__(self):
        return (exec, ('raise SystemExit("code was run")',))


def test_an_initial_state_file_that_runs_code_is_refused(tmp_path):
    bad = tmp_path / 'bad.pruned_init'
    with zipfile.ZipFile(bad, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(_Command(), protocol=2))
        archive.writestr('archive/version', '3\n')
    with pytest.raises(pickle.UnpicklingError):
        read_init_file(bad)
