// run_cases FILE: runs the cases that emulator.py has recorded, in a program of its own for
// AddressSanitizer, which wants to be there before Python. Every array is an allocation of its
// exact size. Prints what it runs; ends with status 1 at the first error.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "entry.h"

namespace kgrec::cuda_host {
namespace {

constexpr size_t kAlignment = 16;

// An array and its memory: as far from a multiple of 16 as in the recording.
struct Memory {
  std::unique_ptr<char[]> bytes;
  Array array;
};

Memory read_array(std::istringstream& words, std::istream& file) {
  Memory memory;
  Array& a = memory.array;
  size_t dims = 0, bytes = 0, past = 0;
  words >> a.kind >> a.item_bytes >> a.row_stride >> past >> bytes >> dims;
  a.shape.resize(dims);
  for (int64_t& n : a.shape) {
    words >> n;
  }
  if (!words || past >= kAlignment) {
    throw std::runtime_error("not a file of cases");
  }
  memory.bytes.reset(new char[past + bytes]);
  a.data = memory.bytes.get() + past;
  file.read(static_cast<char*>(a.data), static_cast<std::streamsize>(bytes));
  return memory;
}

// A case is a line "case NAME ORDER SEED MAX_BLOCKS ARGUMENTS" and as many arguments: a line each,
// after that of an array its bytes.
bool run_case(std::istream& file) {
  std::string line, word, name, order;
  if (!std::getline(file, line)) {
    return false;
  }
  std::istringstream head(line);
  Args args;
  int arguments = 0;
  head >> word >> name >> order >> args.launcher.order.seed >> args.launcher.max_blocks >>
      arguments;
  if (!head || word != "case") {
    throw std::runtime_error("not a file of cases");
  }
  args.launcher.order.kind = order_of(order);
  std::vector<Memory> memory;
  for (int i = 0; i < arguments; ++i) {
    std::getline(file, line);
    std::istringstream words(line);
    std::string key;
    words >> word >> key;
    if (word == "array") {
      memory.push_back(read_array(words, file));
      args.arrays[key] = memory.back().array;
    } else if (word == "integer") {
      words >> args.integers[key];
    } else if (word == "number") {
      std::string number;  // hexadecimal, which >> does not read
      words >> number;
      args.numbers[key] = std::stod(number);
    } else {
      words >> args.texts[key];
    }
  }
  if (!file) {
    throw std::runtime_error("a case is cut off");
  }
  std::cout << name << " " << order << " " << args.launcher.order.seed << std::endl;
  run_entry(name, args);
  return true;
}

}  // namespace
}  // namespace kgrec::cuda_host

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: run_cases FILE\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  try {
    while (kgrec::cuda_host::run_case(file)) {
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
