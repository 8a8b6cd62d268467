#!/usr/bin/env bash
# Builds the Dockerfile on a stand-in for NVIDIA's base and trains in the image as other users than
# root, on the CPU. The first argument is the interpreter of the environment whose packages stand in
# for those of the base. It needs root, and the Debian packages buildah and mmdebstrap; everything
# that it writes lies in one folder of about 3 GB, which it removes at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1

for tool in buildah mmdebstrap; do
  command -v "$tool" >/dev/null ||
    { echo "error: there is no $tool; apt-get install buildah mmdebstrap brings it" >&2; exit 2; }
done
version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
case $version in # the Debian whose own Python can import those packages
  3.11) suite=bookworm ;;
  3.13) suite=trixie ;;
  *) echo "error: no Debian has Python $version; make image-check PYTHON=/path/to/python3.11" >&2; exit 2 ;;
esac

work=$(mktemp -d)
buildah() {
  command buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"
}
trap 'buildah rm --all >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

# A copy of links: pip must find everything but this project itself.
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -al "$packages" "$work/packages" 2>/dev/null ||
  { rm -rf "$work/packages" && cp -a "$packages" "$work/packages"; }
rm -rf "$work"/packages/reste_trainer-*
"$python" - "$work/data" <<'END'
import sys
from pathlib import Path

from tests.data.fixtures import plain_folder

for split, count in (("train", 24), ("val", 9)):
    plain_folder(Path(sys.argv[1]), split, count)
END
chmod -R a+rX "$work"

echo "== the stand-in: Debian $suite with Python $version"
mkdir "$work/base"
mmdebstrap --quiet --variant=minbase --include=make,python3-pip,python3-setuptools,python3-wheel \
  "$suite" "$work/base/debian.tar"
mounts=(--isolation chroot --volume "$work/packages:/opt/stand-in:ro")
buildah bud --quiet --isolation chroot --tag stand-in -f tests/image/Dockerfile "$work/base"
rm -rf "$work/base"

echo "== the image"
buildah bud "${mounts[@]}" --pull-never --build-arg BASE_IMAGE=localhost/stand-in --tag image .
run() {
  buildah run "${mounts[@]}" --volume "$work/data:/data:ro" --user "$user" "$container" -- "$@"
}

small="model.num_classes=3 train.epochs=1 data.size=32 data.resize=32 data.batch_size=8"
small="$small data.eval_batch_size=9 data.workers=1"
for user in 1000:1000 4321:4321; do # the image's own, and one that it does not know
  echo "== a training as $user"
  container=$(buildah from --pull-never localhost/image)
  run sh -c 'test -z "$(ls -d build ./*.egg-info .git .venv 2>/dev/null)"'
  run make imagenet-r18 DATA=/data ARGS="$small" 2>&1 | tee "$work/log"
  grep -E 'torch [0-9].*triton [0-9].*DALI [0-9]' "$work/log" >/dev/null
  run grep -q '"kind": "epoch"' runs/imagenet_resnet18/metrics.jsonl
  buildah rm "$container" >/dev/null
done
echo 'the image trains'
