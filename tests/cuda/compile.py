"""Compiles the CUDA C++ on the standard input by NVRTC and prints its PTX.

    compile.py FOLDER ARCHITECTURE NAME

The folder has the library. For a real architecture (sm_90) it makes machine code, too, so that what only the assembler
refuses is refused.
"""

import ctypes
import pathlib
import sys


def library(folder):
    """NVRTC of that folder."""
    names = sorted(path for path in pathlib.Path(folder).glob("libnvrtc.so.*") if ".alt." not in path.name)
    if not names:
        sys.exit(f"there is no libnvrtc in {folder}; run cargo xtask fetch --nvrtc")
    return ctypes.CDLL(str(names[0]))


def output(nvrtc, program, what):
    """What NVRTC gives in two calls, of its size and of itself: the log, PTX or machine code."""
    size = ctypes.c_size_t()
    if getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)):
        sys.exit(f"NVRTC gives no {what}")
    buffer = ctypes.create_string_buffer(size.value)
    if getattr(nvrtc, f"nvrtcGet{what}")(program, buffer):
        sys.exit(f"NVRTC gives no {what}")
    return buffer.raw


def main():
    folder, architecture, name = sys.argv[1:]
    nvrtc = library(folder)
    program = ctypes.c_void_p()
    source = sys.stdin.buffer.read()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{name}.cu".encode(), 0, None, None):
        sys.exit("NVRTC does not take the source")
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
        sys.exit(output(nvrtc, program, "ProgramLog").rstrip(b"\0").decode())
    if not output(nvrtc, program, "CUBIN").startswith(b"\x7fELF"):
        sys.exit("NVRTC makes no machine code")
    print(output(nvrtc, program, "PTX").rstrip(b"\0").decode())


main()
