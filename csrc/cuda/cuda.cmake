# Whether the CUDA kernels can be built: sets cuda_state, what `lmcache doctor` says of it, and where
# they can cuda_works and cuda_architectures. A compiler that is too old, broken, or knows none of the
# architectures must not break the rest: then there are no kernels, and cuda_state says why.
set(cuda_works OFF)
set(cuda_architectures ${LMCACHE_CUDA_ARCHITECTURES})

# Toolkits often stay off PATH. By the environment, so that check_language still tries the compiler:
# one that is there but broken must not break the build.
if(NOT DEFINED ENV{CUDACXX})
  find_program(LMCACHE_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(LMCACHE_NVCC)
    set(ENV{CUDACXX} ${LMCACHE_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  set(cuda_state "not built: no CUDA compiler (nvcc) that works was found")
  return()
endif()

# CMake ends at an architecture that the compiler does not know, so they are asked for first. Words
# (native, all) are the compiler's own choice.
execute_process(
  COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch
  OUTPUT_VARIABLE cuda_known RESULT_VARIABLE cuda_failed ERROR_QUIET)
if(cuda_failed)
  set(cuda_state "not built: ${CMAKE_CUDA_COMPILER} --list-gpu-arch fails; CUDA 12.0 or later is needed")
  return()
endif()
set(cuda_left_out "")
set(cuda_newest "")
foreach(architecture IN LISTS LMCACHE_CUDA_ARCHITECTURES)
  string(REGEX MATCH "^[0-9]+[af]?" number ${architecture})
  if(number AND NOT cuda_known MATCHES "compute_${number}([^0-9a-z]|$)")
    list(REMOVE_ITEM cuda_architectures ${architecture})
    list(APPEND cuda_left_out ${architecture})
  elseif(number)
    set(cuda_newest ${number})
  endif()
endforeach()
# GPUs that came later are served by the PTX of the newest that is left.
if(cuda_left_out MATCHES "virtual" AND cuda_newest)
  list(APPEND cuda_architectures ${cuda_newest}-virtual)
endif()
list(JOIN cuda_left_out ", " cuda_left_out)
if(NOT cuda_architectures)
  set(cuda_state "not built: ${CMAKE_CUDA_COMPILER} knows none of ${cuda_left_out}")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  set(cuda_state "not built: CUDA ${CMAKE_CUDA_COMPILER_VERSION} has no C++20; 12.0 or later is needed")
  return()
endif()
find_package(CUDAToolkit)
if(NOT TARGET CUDA::cudart_static)
  set(cuda_state "not built: the CUDA toolkit has no static runtime library")
  return()
endif()
# What the kernels use of the language and the runtime, before they themselves stop the build.
try_compile(LMCACHE_CUDA_COMPILES ${CMAKE_CURRENT_BINARY_DIR}/cuda_trial
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/trial.cu
  CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${CMAKE_CURRENT_LIST_DIR}/..
  LINK_LIBRARIES CUDA::cudart_static
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON
  OUTPUT_VARIABLE cuda_said)
if(NOT LMCACHE_CUDA_COMPILES)
  string(REGEX MATCH "[^\n]*([Ee]rror|fatal)[^\n]*" cuda_said "${cuda_said}")
  string(REGEX REPLACE "[\"\\;]" " " cuda_said "${cuda_said}")
  set(cuda_state "not built: CUDA ${CMAKE_CUDA_COMPILER_VERSION} does not compile them: ${cuda_said}")
  return()
endif()
list(JOIN cuda_architectures ", " cuda_targets)
set(cuda_state "built by CUDA ${CUDAToolkit_VERSION} for ${cuda_targets}")
if(cuda_left_out)
  string(APPEND cuda_state " (it does not know ${cuda_left_out})")
endif()
set(cuda_works ON)
