# Settings of your cluster and your run, for the scripts beside this file.
# Read by bash on the first node of a job; exported variables reach all nodes.

PYTHON=$PWD/.venv/bin/python            # of an environment that all nodes see; PWD is where sbatch was called
COMMAND=ppo                             # what ppo.sbatch runs: ppo, rm, or any other command that trains
RECIPE=small                            # of that command
RUN_DIR=$PWD/runs/$RECIPE               # on a file system that all nodes share: a requeued job goes on from it
OVERRIDES=(cluster.zero_stage=2)        # more settings of the run, key=value
LOG_DIR=$RUN_DIR/logs                   # a folder for each start of a job, in it one for each node, in it one per rank

PROCESSES_PER_NODE=${SLURM_GPUS_ON_NODE:-1}  # one a GPU
GRACE_S=240                             # seconds to save in; --signal in ppo.sbatch leaves 300
RENDEZVOUS_HOST=                        # empty: the first node of the job, by its name in Slurm
RENDEZVOUS_PORT=                        # empty: a port from 20000 to 39999 that follows from the job's number
EXTENSIONS_DIR=                         # empty: LOG_DIR/extensions; what DeepSpeed compiles, not shared by running jobs

export HF_HUB_OFFLINE=1                 # compute nodes often have no way out; load models and data before
# export HF_HOME=/shared/huggingface
# export NCCL_SOCKET_IFNAME=ib0         # where the nodes' default interface is not the fast one
# export GLOO_SOCKET_IFNAME=ib0         # also where a node's name is 127.0.1.1 in its /etc/hosts: node.sh refuses that

# A reward model that is served by its own job, serve_reward.sbatch: yes or no
REWARD_SERVER=no
REWARD_OVERRIDES=(reward=starling_34b reward.device_map=auto)
REWARD_ADDRESS=$RUN_DIR.reward          # a file with the server's address; with .token at its end, the token
REWARD_HOST=                            # empty: the server's node by its own name; another one if others know it so
REWARD_WAIT_S=1800                      # how long ppo.sbatch waits for a server to have loaded its model

# vLLM that draws the responses, in its own job, serve_vllm.sbatch: yes or no
VLLM_SERVER=no
VLLM_PYTHON=$PYTHON                     # of an environment with vLLM
VLLM_MODEL=openchat/openchat-3.5-0106   # the recipe's model.path
VLLM_OPTIONS=(--dtype bfloat16)         # the recipe's model.dtype; all GPUs of the node share the model
VLLM_ADDRESS=$RUN_DIR.vllm              # a file with the server's address; with .token at its end, the key
VLLM_HOST=                              # empty: the server's node by its own name; another one if others know it so
VLLM_PORT=                              # empty: from 20000 to 39999, by the job's number
VLLM_WEIGHTS=$RUN_DIR.weights           # a folder that all nodes share, for weights on their way

# pipeline.sh: where the trained model goes, a new directory, and what is measured of it
MODEL_DIR=$RUN_DIR.model
EVALUATE=('suites=[function_calling]' "function_calling.path=$PWD/bfcl")
