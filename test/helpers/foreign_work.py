"""Work of somebody else, for the tests of what we write beside it."""


def snapshot(folder):
    """Every path below a folder with what it is; links are not followed."""
    found = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ('link', str(path.readlink()))
        else:
            found[name] = ('folder',) if path.is_dir() else ('file', path.read_bytes())
    return found


def plant(folder, elsewhere):
    """Work of somebody else: files, folders, a repository, links to files and folders."""
    (elsewhere / 'data').mkdir(parents=True)
    (elsewhere / 'data' / 'precious.bin').write_text('years')
    (folder / '.git' / 'objects').mkdir(parents=True)
    (folder / '.git' / 'HEAD').write_text('ref: refs/heads/main')
    (folder / 'src' / 'empty').mkdir(parents=True)
    (folder / 'src' / 'main.py').write_text('print()')
    (folder / 'notes.txt').write_text('mine')
    (folder / 'linked').symlink_to(elsewhere / 'data')
    (folder / 'linked.bin').symlink_to(elsewhere / 'data' / 'precious.bin')
    (folder / 'dangling').symlink_to(elsewhere / 'nothing')
    return snapshot(folder), snapshot(elsewhere)
