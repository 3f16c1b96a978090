#include "emulator/asynchronous.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <utility>
#include <vector>

#include "emulator/fibers.h"

namespace tss::emulator {
namespace {

struct Copy {
    char* target;
    const char* source;
    unsigned bytes, valid_bytes;
};

struct Product {
    float* sums;
    const unsigned* a;
    std::uint64_t descriptor;
    Multiply multiply;
};

// Sums of products in flight: their future values, while their own place holds NaN.
struct Kept {
    float* place;
    std::vector<float> values;
};

struct Thread {
    std::vector<Copy> promised, unfenced;
    std::deque<std::vector<Copy>> committed;
    std::vector<Product> issued;
    std::deque<std::vector<Product>> groups;
    std::vector<Kept> kept;
    bool registers_fenced = false;
};

std::vector<Thread> threads_of_block;
std::vector<bool> unfenced_bytes;  // of shared memory

Thread& self() { return threads_of_block[thread_number()]; }

void mark(const Copy& copy, bool unfenced) {
    const auto first = unfenced_bytes.begin() + (copy.target - shared_memory());
    std::fill(first, first + copy.bytes, unfenced);
}

void make(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
        if (copy.valid_bytes > 0) std::memcpy(copy.target, copy.source, copy.valid_bytes);
        std::memset(copy.target + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
        mark(copy, true);
        self().unfenced.push_back(copy);
    }
}

Kept* kept_at(float* place) {
    for (Kept& one : self().kept) {
        if (one.place == place) return &one;
    }
    return nullptr;
}

bool is_under_way(const float* place) {
    const auto has = [place](const std::vector<Product>& products) {
        return std::any_of(products.begin(), products.end(), [place](const Product& one) { return one.sums == place; });
    };
    return has(self().issued) || std::any_of(self().groups.begin(), self().groups.end(), has);
}

}  // namespace

void start_asynchronous(unsigned threads, std::size_t shared_bytes) {
    threads_of_block.assign(threads, Thread());
    unfenced_bytes.assign(shared_bytes, false);
}

void promise_copy(void* target, const void* source, unsigned bytes, unsigned valid_bytes) {
    ++counts.copies;
    counts.copied_bytes += valid_bytes;
    std::memset(target, 0xFF, bytes);  // a read of the old content sees NaN
    self().promised.push_back({static_cast<char*>(target), static_cast<const char*>(source), bytes, valid_bytes});
}

void commit_copies() { self().committed.push_back(std::exchange(self().promised, {})); }

void wait_for_copies(unsigned pending_groups) {
    auto& committed = self().committed;
    for (; committed.size() > pending_groups; committed.pop_front()) make(committed.front());
}

void fence_shared() {
    for (const Copy& copy : self().unfenced) mark(copy, false);
    self().unfenced.clear();
}

bool is_fenced(std::size_t at) { return !unfenced_bytes[at]; }

void fence_registers() { self().registers_fenced = true; }

void issue_product(float* sums, std::size_t count, const unsigned* a, std::uint64_t descriptor, Multiply multiply) {
    constexpr float unknown = std::numeric_limits<float>::quiet_NaN();
    if (kept_at(sums) == nullptr) self().kept.push_back({sums, std::vector<float>(sums, sums + count)});
    if (!self().registers_fenced) kept_at(sums)->values.assign(count, unknown);
    std::fill_n(sums, count, unknown);
    self().issued.push_back({sums, a, descriptor, multiply});
}

void commit_products() { self().groups.push_back(std::exchange(self().issued, {})); }

void wait_for_products(unsigned pending_groups) {
    auto& groups = self().groups;
    for (; groups.size() > pending_groups; groups.pop_front()) {
        for (const Product& one : groups.front()) {
            one.multiply(kept_at(one.sums)->values.data(), one.a, one.descriptor);  // all lanes of the warp together
        }
    }
    auto& kept = self().kept;
    const auto done = std::partition(kept.begin(), kept.end(), [](const Kept& one) { return is_under_way(one.place); });
    for (auto one = done; one != kept.end(); ++one) std::copy(one->values.begin(), one->values.end(), one->place);
    kept.erase(done, kept.end());
    self().registers_fenced = false;
}

}  // namespace tss::emulator
