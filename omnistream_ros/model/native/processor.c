/* SPDX-License-Identifier: Apache-2.0
 *
 * Which of the other files' functions this processor can run. Compiled for any x86 processor, as they
 * are not. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TORCH = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3, AMX = 4 }; /* INSTRUCTIONS in __init__.py */

/* The best that this processor and operating system can do. */
int omnistream_instructions(void) {
  unsigned a, b, c, d;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return TORCH;
  if (!__builtin_cpu_supports("avx512f")) return AVX2;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vbmi") ||
      !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1))
    return AVX512;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  int tiles = (d >> 22 & 1) && (d >> 24 & 1); /* AMX-BF16, AMX-TILE */
  if (tiles && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0) return AMX;
  return AVX512_BF16;
}
