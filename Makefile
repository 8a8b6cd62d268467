# What a person gives stays as it was typed: make itself would expand each $ in it. Only a line break
# has no way through a recipe. ARGS, RUNS and CMD are lists of words, in which a shell takes quotes away;
# in ARGS and RUNS, what a shell would run or expand is refused.
define break


endef
typed = $(if $(findstring $(break),$(value $(1))),$(error $(1) holds a line break; give it without))$(value $(1))
given = DATA RUNS CONFIG GPUS DEVICE ARGS CMD MINUTES JOBS IMAGE BASE_IMAGE PYTHON BASE_PYTHON
$(foreach name,$(.VARIABLES),$(if $(filter command environment,$(firstword $(origin $(name)))),\
  $(if $(or $(filter $(name),$(given)),$(filter command,$(firstword $(origin $(name))))),\
  $(eval override $(name) := $$(call typed,$(name))))))
remedy_ARGS = give that value in a config, or to ./reste train
remedy_RUNS = give it to ./reste compare
$(foreach name,ARGS RUNS,$(foreach sign,$$ ` ; & | < >,$(if $(findstring $(sign),$($(name))),\
  $(error $(name) holds $(sign), which a shell would take for its own; $(remedy_$(name))))))

# PYTHON=... takes that interpreter as it is; without it, .venv is made once and kept up to date.
VENV := .venv
BASE_PYTHON ?= python3
BASE_IMAGE ?= nvcr.io/nvidia/pytorch:26.09-py3
IMAGE ?= reste-trainer
# Which versions are installed: the newest that were tested; LATEST=1: today's newest; OLDEST=1: the
# oldest that pyproject.toml admits.
VERSIONS = $(if $(LATEST),--upgrade --upgrade-strategy eager,-c $(if $(OLDEST),$(VENV)/oldest.txt,constraints.txt))
CMD ?= make imagenet-r18 $(if $(DATA),DATA=/data) $(if $(GPUS),GPUS=$(call quote,$(GPUS))) \
  $(if $(ARGS),ARGS=$(call quote,$(ARGS)))

ifdef PYTHON
READY :=
RESTE = PYTHON=$(call quote,$(PYTHON)) ./reste
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
RESTE = ./reste
endif

quote = '$(subst ','\'',$(1))'
python = $(call quote,$(PYTHON))
# One node: like this nothing listens to other machines; with torchrun's --standalone it does.
TORCHRUN = meeting=$$(mktemp) && trap 'rm -f "$$meeting"' EXIT && TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
  OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
  $(python) -m torch.distributed.run --rdzv-backend=c10d --rdzv-conf=store_type=file \
  --rdzv-endpoint="$$meeting" --local-addr=127.0.0.1 --nproc-per-node=$(GPUS) --max-restarts=3
arguments = $(1) $(if $(DATA),$(call quote,data.path=$(DATA))) $(ARGS)
# torchrun answers every failure with a long report of its own, so a mistake is looked for first.
is_number = case $(call quote,$(GPUS)) in *[!0-9]* | 0*) echo 'error: GPUS is no number of GPUs' >&2; exit 2 ;; esac
is_several = $(if $(GPUS),$(subst =1=,,=$(GPUS)=))
train = $(if $(is_several),$(is_number) && LOCAL_WORLD_SIZE=$(GPUS) $(RESTE) train $(arguments) --check=$(GPUS) && \
  $(TORCHRUN) -m launch.train $(arguments),$(RESTE) train $(arguments))
bench = $(RESTE) benchmark $(1) $(if $(CONFIG),$(call quote,$(CONFIG)),$(2)) $(if $(DEVICE),$(call quote,train.device=$(DEVICE))) \
  $(if $(DATA),$(call quote,data.path=$(DATA))) $(ARGS)
# Tests start many processes; none of them should have to compile all sources anew.
pytest = PYTHONDONTWRITEBYTECODE= $(python) -m pytest
# Three processes for two cores, as some tests wait; the tests of a file stay together.
in_parallel = -n $(call quote,$(or $(JOBS),3)) --dist loadfile --no-loadscope-reorder
# --mount, since -v would create a path that is missing, as root.
mount_runs = --mount type=bind,source=$(call quote,$(CURDIR)/runs),target=/workspace/reste-trainer/runs
mount_data = --mount type=bind,source="$$(CDPATH= cd -- $(call quote,$(DATA)) && pwd)",target=/data,readonly

.PHONY: help setup quickstart test test-all test-versions lock test-gpu soak lint format \
	imagenet-r18 imagenet-r34 cifar10-r20 cifar10-r20-bireal cifar10-r18 cifar10-vgg-small \
	compare bench-kernels bench-train bench-loader bench-inference bench-prepare scaling \
	docker-build image-check docker-run

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  DATA=path  ARGS="key=value ..."  PYTHON=interpreter (instead of .venv)  BASE_PYTHON=python3.12 (to make .venv)'

setup: $(READY)  ## make .venv and install what was tested into it (6 GB, once); LATEST=1: the newest

quickstart: $(READY)  ## train a small network on a data set drawn here
	$(RESTE) train quickstart $(ARGS)

test: $(READY)  ## the quick tests, in minutes on a CPU; a GPU is hidden from them
	$(pytest) -m "not gpu and not slow" $(in_parallel) $(ARGS)

test-all: $(READY)  ## all tests that need no GPU
	$(pytest) -m "not gpu" $(in_parallel) $(ARGS)

test-versions:  ## the quick tests on the oldest and the newest versions (6 GB each)
	$(MAKE) test VENV=$(VENV)-oldest OLDEST=1
	$(MAKE) test VENV=$(VENV)-newest LATEST=1

# Of all extras: pip install '.[imagenet,hub,onnx,openvino]' comes first.
lock: $(READY)  ## let constraints.txt admit what is installed, once it is tested
	{ echo '# The newest versions that were tested. make lock writes this.'; \
	  $(python) -m pip freeze | sed -n 's/+.*//; s/==/<=/p'; } > constraints.txt

test-gpu: $(READY)  ## the tests that need a GPU, and those of all kernels on it
	TRITON_INTERPRET=0 $(pytest) -m "gpu or triton" $(ARGS)

soak: $(READY)  ## break real runs for MINUTES=30 and see whether they survive
	$(python) -m tests.faults.soak --minutes $(call quote,$(or $(MINUTES),30))

lint: $(READY)  ## ruff and mypy; changes nothing
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: $(READY)  ## let ruff rewrite the sources
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

imagenet-r18: $(READY)  ## ImageNet, ResNet-18
	$(call train,imagenet_resnet18)

imagenet-r34: $(READY)  ## ImageNet, ResNet-34
	$(call train,imagenet_resnet34)

cifar10-r20: $(READY)  ## CIFAR-10, ResNet-20
	$(call train,cifar10_resnet20)

cifar10-r20-bireal: $(READY)  ## CIFAR-10, ResNet-20 with Bi-Real skips
	$(call train,cifar10_resnet20_bireal)

cifar10-r18: $(READY)  ## CIFAR-10, ResNet-18
	$(call train,cifar10_resnet18)

cifar10-vgg-small: $(READY)  ## CIFAR-10, VGG-small
	$(call train,cifar10_vgg_small)

compare: $(READY)  ## RUNS="runs/a runs/b": settings, results and curves side by side
	$(RESTE) compare $(RUNS) $(ARGS)

bench-kernels: $(READY)  ## microbenchmarks of the kernels (DEVICE=cpu|cuda)
	$(call bench,kernels,imagenet_resnet18)

bench-train: $(READY)  ## training throughput, and from ImageNet's files on (CONFIG=, DATA=, DEVICE=cpu|cuda)
	$(call bench,train,cifar10_resnet20)

bench-loader: $(READY)  ## data loading throughput (CONFIG=, DATA=, DEVICE=cpu|cuda); SWEEP=1: the best settings
	$(call bench,loader,imagenet_resnet18) $(if $(SWEEP),--sweep)

bench-inference: $(READY)  ## images on the processor, beside onnxruntime and OpenVINO (CONFIG=)
	$(call bench,inference,imagenet_resnet18)

bench-prepare: $(READY)  ## images that a core resizes and packs in a second (DATA=)
	$(call bench,prepare,imagenet_resnet18)

scaling: $(READY)  ## the tables and the plot of docs/scaling.md
	$(RESTE) benchmark scaling

docker-build:  ## build the image (BASE_IMAGE=, IMAGE=)
	docker build --build-arg $(call quote,BASE_IMAGE=$(BASE_IMAGE)) -t $(call quote,$(IMAGE)) .

image-check: $(READY)  ## build the image on a minimal Debian, and train in it
	tests/image/check.sh $(python)

docker-run:  ## imagenet-r18, or CMD="make ...", in the image; DATA becomes /data, runs/ is shared
	@mkdir -p runs
	docker run --rm $$(test -t 0 && echo -it) --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \
	  --user "$$(id -u):$$(id -g)" --env WANDB_API_KEY $(mount_runs) $(if $(DATA),$(mount_data)) $(call quote,$(IMAGE)) $(CMD)

# .incomplete marks an environment that was begun here and not finished: it is made anew. Any other
# one is only brought up to date.
$(VENV)/.ready: pyproject.toml constraints.txt $(if $(LATEST),always)
	@if [ -e $(VENV)/.incomplete ] || [ ! -x $(VENV)/bin/python ]; then \
	  $(call quote,$(BASE_PYTHON)) -c 'import ensurepip, sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	    { echo $(call quote,error: $(BASE_PYTHON) is no Python 3.11 or newer with its venv module: make setup BASE_PYTHON=/path/to/python3.11) >&2; exit 1; }; \
	  rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.incomplete && $(call quote,$(BASE_PYTHON)) -m venv $(VENV); fi
	$(if $(OLDEST),@grep -oE '[a-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/>=/==/' > $(VENV)/oldest.txt)
	$(python) -m pip install --disable-pip-version-check $(VERSIONS) '.[torch,test,lint,wandb,plot]'
	$(if $(LATEST),@held=$$($(python) -m pip config list | grep constraint=) && \
	  echo "note: pip's settings on this machine hold versions back: $$held" || true)
	@rm -f $(VENV)/.incomplete && touch $@

always:  # makes anew what needs it
