#!/bin/sh
# Makes an environment of its own for each of lerobot, robomimic and minari, for benchmarks/round_trip.py.
#
# sh benchmarks/setup_peers.sh DIR [PYTHON [PEER...]]
#
# DIR/<peer>/run is then that peer's interpreter. PYTHON: default .venv/bin/python; uv is taken from beside it, from the
# path or from .venv/bin. Python 3.11 gets lerobot 0.4, 3.12 and later get 0.6; both write v3.0. What is in uv's cache is
# linked, not copied. torch comes with CUDA's libraries (8 GB unpacked for lerobot, 6 GB for robomimic);
# UV_TORCH_BACKEND=cpu takes the small one where PyTorch's own index can be reached. Exits with 1 when one did not
# install or does not import.
set -u
[ $# -ge 1 ] || { sed -n '2,11p' "$0"; exit 2; }
directory=$1
python=${2:-.venv/bin/python}
[ $# -gt 2 ] && shift 2 && peers=$* || peers="minari robomimic lerobot"
uv=$(dirname "$python")/uv
[ -x "$uv" ] || uv=$(command -v uv) || uv=.venv/bin/uv
[ -x "$uv" ] || { echo "expected uv beside $python, on the path or in .venv/bin; make setup installs it"; exit 2; }
constraints=$(dirname "$0")/../constraints.txt
failed=0
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

install() { # peer, what imports it, packages or options of uv...
    peer=$1 module=$2
    shift 2
    home=$directory/$peer began=$(date +%s)
    [ -x "$home/bin/python" ] || "$uv" venv --quiet --python "$python" "$home" || { failed=1; return; }
    if ! "$uv" pip install --quiet --python "$home/bin/python" "$@" > "$directory/$peer.log" 2>&1; then
        echo "$peer: NOT installed, see $directory/$peer.log"
        failed=1
        return
    fi
    # torchcodec looks for FFmpeg by its usual names; PyAV's wheel brings one under other names.
    "$home/bin/python" - "$home/ffmpeg" << 'END'
import pathlib, re, sys, sysconfig
target, bundled = pathlib.Path(sys.argv[1]), pathlib.Path(sysconfig.get_path("purelib")) / "av.libs"
target.mkdir(exist_ok=True)
for file in bundled.glob("lib*.so*"):
    plain = re.match(r"(lib(?:av|sw)\w+)-[0-9a-f]+\.so\.(\d+)", file.name)
    for name in {file.name, f"{plain[1]}.so.{plain[2]}" if plain else file.name}:
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(file)
END
    cat > "$home/run" << END
#!/bin/sh
# The interpreter of $peer: offline, with FFmpeg for torchcodec.
export HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH="$home/ffmpeg\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$home/bin/python" "\$@"
END
    chmod +x "$home/run"
    if version=$("$home/run" -c "
import importlib, importlib.metadata
importlib.import_module('$module')
print(importlib.metadata.version('$peer'))" 2> "$directory/$peer.import.log"); then
        echo "$peer $version: $(($(date +%s) - began)) s, $(du -sm "$home" | cut -f1) MB"
    else
        echo "$peer: does NOT import, see $directory/$peer.import.log"
        failed=1
    fi
}

for peer in $peers; do
    case $peer in
        # Reading JPEG needs pillow, and recording needs jax; neither comes with minari's extra for HDF5.
        minari) install minari minari.dataset.minari_dataset "minari[hdf5,arrow,create]>=0.5" pillow ;;
        robomimic) install robomimic robomimic.utils.dataset --constraint "$constraints" "robomimic>=0.3" ;;
        lerobot) install lerobot lerobot.datasets.lerobot_dataset "lerobot[dataset]>=0.4" ;;
        *) echo "no peer is called $peer: minari, robomimic or lerobot"; exit 2 ;;
    esac
done
exit $failed
