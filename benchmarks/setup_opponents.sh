#!/bin/sh
# Makes a virtual environment for the packages that benchmarks/loader.py measures against and we do not depend on.
#
# sh benchmarks/setup_opponents.sh DIR [PYTHON]
#
# DIR sees the packages of PYTHON (default: .venv/bin/python), so torch, NumPy and h5py are the same on both sides;
# what a package pins otherwise lies in DIR alone. Prints what did not install; takes about a minute.
set -u
[ $# -ge 1 ] || { sed -n '2,7p' "$0"; exit 2; }
directory=$1
python=${2:-.venv/bin/python}
"$python" -m venv "$directory" || exit 1
inner=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
outer=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$outer" > "$inner/ours.pth"
missing=0
install() { # name, packages...
    name=$1
    shift
    if "$directory/bin/pip" install --quiet --disable-pip-version-check "$@" > "$directory/$name.log" 2>&1; then
        echo "$name: installed"
    else
        echo "$name: NOT installed, see $directory/$name.log"
        missing=1
    fi
}
install minari "minari[hdf5]>=0.5"
install robomimic "robomimic>=0.3"
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
install torchcodec torchcodec "torch==$torch"
# torchcodec looks for FFmpeg by its usual names; PyAV's wheel brings one under other names.
"$directory/bin/python" - "$directory/ffmpeg" << 'EOF'
import pathlib, re, sys
import av
target, bundled = pathlib.Path(sys.argv[1]), pathlib.Path(av.__file__).parent.parent / "av.libs"
target.mkdir(exist_ok=True)
for file in bundled.glob("lib*.so*"):
    plain = re.match(r"(lib(?:av|sw)\w+)-[0-9a-f]+\.so\.(\d+)", file.name)
    for name in (file.name, f"{plain[1]}.so.{plain[2]}" if plain else file.name):
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(file)
EOF
for name in minari robomimic torchcodec; do
    LD_LIBRARY_PATH="$directory/ffmpeg" "$directory/bin/python" -W ignore -c "
import importlib.metadata, $name
print('$name', importlib.metadata.version('$name'), 'imports')" 2> "$directory/$name.import.log" ||
        { echo "$name: does NOT import, see $directory/$name.import.log"; missing=1; }
done
exit $missing
