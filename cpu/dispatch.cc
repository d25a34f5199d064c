// Chooses the table of kernels: what the CPU says (cpuid), what the system saves (xgetbv), what the
// person asked for.
#include <cpuid.h>

#include <string>

#include "cpu/kernels.h"
#include "cpu/tables.h"

namespace offstage {
namespace {

struct Feature {
  std::string_view name;
  bool present;
};

uint64_t saved_register_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

struct Cpu {
  bool ymm = false, zmm = false;  // registers that the system saves
  uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0;
};

Cpu read_cpu() {
  Cpu cpu;
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return cpu;
  cpu.leaf1_ecx = ecx;
  if ((ecx >> 27 & 1) != 0) {  // OSXSAVE: xgetbv exists
    const uint64_t state = saved_register_state();
    cpu.ymm = (state & 0x06) == 0x06;
    cpu.zmm = (state & 0xe6) == 0xe6;
  }
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    cpu.leaf7_ebx = ebx;
    cpu.leaf7_ecx = ecx;
  }
  return cpu;
}

template <size_t n>
std::string missing_of(const Feature (&features)[n]) {
  std::string names;
  for (const Feature& feature : features) {
    if (feature.present) continue;
    if (!names.empty()) names += ", ";
    names += feature.name;
  }
  return names;
}

std::string missing_avx2(const Cpu& cpu) {
  const Feature features[] = {
      {"AVX2", (cpu.leaf7_ebx >> 5 & 1) != 0},
      {"FMA", (cpu.leaf1_ecx >> 12 & 1) != 0},
      {"F16C", (cpu.leaf1_ecx >> 29 & 1) != 0},
      {"the system's saving of ymm registers", cpu.ymm},
  };
  return missing_of(features);
}

std::string missing_avx512(const Cpu& cpu) {
  const Feature features[] = {
      {"AVX512F", (cpu.leaf7_ebx >> 16 & 1) != 0},
      {"AVX512DQ", (cpu.leaf7_ebx >> 17 & 1) != 0},
      {"AVX512BW", (cpu.leaf7_ebx >> 30 & 1) != 0},
      {"AVX512VL", (cpu.leaf7_ebx >> 31 & 1) != 0},
      {"AVX512_VBMI", (cpu.leaf7_ecx >> 1 & 1) != 0},
      {"AVX512_VBMI2", (cpu.leaf7_ecx >> 6 & 1) != 0},
      {"AVX512_VNNI", (cpu.leaf7_ecx >> 11 & 1) != 0},
      {"the system's saving of zmm registers", cpu.zmm},
  };
  std::string missing = missing_avx2(cpu);
  const std::string wide = missing_of(features);
  if (!missing.empty() && !wide.empty()) missing += ", ";
  return missing + wide;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
  }
  return "unknown";
}

Result<const Kernels*> kernels_for(Isa isa) {
  const Cpu cpu = read_cpu();
  std::string missing;
  if (isa == Isa::kAvx2) missing = missing_avx2(cpu);
  if (isa == Isa::kAvx512) missing = missing_avx512(cpu);
  if (!missing.empty()) {
    return make_error(ErrorCode::kUnsupported, "instruction set {}: this machine lacks {}",
                      isa_name(isa), missing);
  }
  switch (isa) {
    case Isa::kScalar: return &kKernelsScalar;
    case Isa::kAvx2: return &kKernelsAvx2;
    case Isa::kAvx512: return &kKernelsAvx512;
  }
  return make_error(ErrorCode::kInvalidArgument, "no such instruction set");
}

Result<const Kernels*> choose_kernels(std::string_view override_name) {
  if (override_name.empty()) {
    for (Isa isa : {Isa::kAvx512, Isa::kAvx2})
      if (auto kernels = kernels_for(isa)) return kernels;
    return kernels_for(Isa::kScalar);
  }
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (override_name == isa_name(isa)) return kernels_for(isa);
  return make_error(ErrorCode::kInvalidArgument,
                    "OFFSTAGE_ISA='{}': expected scalar, avx2 or avx512", override_name);
}

}  // namespace offstage
