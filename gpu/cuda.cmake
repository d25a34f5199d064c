# Decides whether this build has CUDA, and says so in one line. Included at the top level, where the
# language must be enabled. In: OFFSTAGE_CUDA, OFFSTAGE_SANITIZE, OFFSTAGE_FUZZ. Out:
# OFFSTAGE_HAVE_CUDA, and the language CUDA if that is on.
set(OFFSTAGE_HAVE_CUDA OFF)
set(cuda_why_not "")

if(NOT OFFSTAGE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "OFFSTAGE_CUDA is '${OFFSTAGE_CUDA}', expected AUTO, ON or OFF")
elseif(OFFSTAGE_CUDA STREQUAL "OFF")
  set(cuda_why_not "OFFSTAGE_CUDA=OFF")
elseif(OFFSTAGE_SANITIZE OR OFFSTAGE_FUZZ)
  # The driver maps memory where the sanitizers keep their shadow.
  set(cuda_why_not "sanitizers are on")
else()
  # Toolkits are often installed without being on the path.
  find_program(OFFSTAGE_NVCC nvcc HINTS $ENV{CUDA_PATH} $ENV{CUDA_HOME} /usr/local/cuda
               PATH_SUFFIXES bin)
  if(OFFSTAGE_NVCC AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} ${OFFSTAGE_NVCC})
  endif()
  # One target for real and its PTX, which newer devices compile for themselves.
  set(CMAKE_CUDA_ARCHITECTURES 75 CACHE STRING "CUDA architectures, as CMake names them")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_why_not "no nvcc that works here")
  else()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11)
      set(cuda_why_not "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old for C++17, needs 11")
    else()
      find_package(CUDAToolkit REQUIRED)
      set(OFFSTAGE_HAVE_CUDA ON)
    endif()
  endif()
endif()

if(OFFSTAGE_HAVE_CUDA)
  message(STATUS "CUDA: compiled in, nvcc ${CMAKE_CUDA_COMPILER_VERSION}, "
                 "architectures ${CMAKE_CUDA_ARCHITECTURES}")
elseif(OFFSTAGE_CUDA STREQUAL "ON")
  message(FATAL_ERROR "OFFSTAGE_CUDA=ON, but ${cuda_why_not}")
else()
  message(STATUS "CUDA: not compiled in (${cuda_why_not}); everything else is")
endif()
