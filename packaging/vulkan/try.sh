#!/bin/sh
# Try edgechat with the package edgechat-vulkan on a machine with a GPU: sh try.sh WHEELS OUTPUT MODEL.gguf... [-- LLAMA_BENCH]
exec sh "$(dirname "$0")/../gpu/try.sh" vulkan "$@"
