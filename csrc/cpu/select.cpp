// Capacity and prefix-sum slots. The semantics are those of reference/select.py.
#include "select.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "priority.h"

namespace capmoe::cpu {
namespace {

using Flags = std::vector<char>;  // [T, K]

// Copies ids; num_experts where the pair is unused: out of range, padding, or a repeated expert.
template <class Id>
void clean_ids(const Id* ids, const bool* token_mask, const Select& config, int32_t* expert_ids,
               const ParallelFor& parallel_for) {
  const int64_t columns = config.columns;
  parallel_for(config.tokens, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> last_token(config.num_experts, -1);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t id = ids[t * columns + j];
        const bool in_range = id >= 0 && id < config.num_experts;
        const bool used = in_range && (token_mask == nullptr || token_mask[t]) && last_token[id] != t;
        expert_ids[t * columns + j] = static_cast<int32_t>(used ? id : config.num_experts);
        if (used) last_token[id] = t;
      }
    }
  });
}

// What one round of competition needs: the layer, and who asks.
struct Round {
  const Select& config;
  int64_t capacity;
  const int32_t* expert_ids;
  const float* scores;
  const int64_t* token_priority;
};

// The asking pairs of every budget (an expert, or a device's experts), by token, then by expert.
struct BudgetLists {
  std::vector<int64_t> starts;  // [budgets + 1]
  std::vector<int64_t> pairs;
};

BudgetLists list_by_budget(const Round& round, const Flags& asking) {
  const Select& config = round.config;
  const int64_t columns = config.columns;
  BudgetLists lists;
  lists.starts.assign(config.num_experts / config.unit + 1, 0);
  for (size_t pair = 0; pair < asking.size(); ++pair) {
    if (asking[pair]) ++lists.starts[round.expert_ids[pair] / config.unit + 1];
  }
  for (size_t b = 1; b < lists.starts.size(); ++b) lists.starts[b] += lists.starts[b - 1];
  lists.pairs.resize(lists.starts.back());
  std::vector<int64_t> next(lists.starts.begin(), lists.starts.end() - 1);
  std::vector<int64_t> order;
  for (int64_t t = 0; t < config.tokens; ++t) {
    order.clear();
    for (int64_t pair = t * columns; pair < (t + 1) * columns; ++pair) {
      if (asking[pair]) order.push_back(pair);
    }
    if (config.unit > 1) {
      std::sort(order.begin(), order.end(),
                [&](int64_t a, int64_t b) { return round.expert_ids[a] < round.expert_ids[b]; });
    }
    for (int64_t pair : order) lists.pairs[next[round.expert_ids[pair] / config.unit]++] = pair;
  }
  return lists;
}

Candidate candidate(const Round& round, int64_t pair, int64_t place) {
  const Select& config = round.config;
  const int64_t token = pair / config.columns;
  const bool first = config.topk_first && pair % config.columns < config.top_k;
  const uint32_t policy = policy_key(config, token, round.expert_ids[pair], round.scores[pair]);
  const int64_t priority_class = round.token_priority == nullptr ? 0 : round.token_priority[token];
  return {priority_class, candidate_key(first, policy, place), pair};
}

// Of the pairs that ask, those within their budget.
Flags compete(const Round& round, const Flags& asking, const ParallelFor& parallel_for) {
  const BudgetLists lists = list_by_budget(round, asking);
  const int64_t budget = round.capacity * round.config.unit;
  Flags kept = asking;
  parallel_for(round.config.num_experts / round.config.unit, [&](int64_t begin, int64_t end) {
    std::vector<Candidate> all;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t start = lists.starts[b], count = lists.starts[b + 1] - start;
      if (count <= budget) continue;
      all.clear();
      for (int64_t i = 0; i < count; ++i) all.push_back(candidate(round, lists.pairs[start + i], i));
      if (budget > 0) std::nth_element(all.begin(), all.begin() + budget - 1, all.end());
      for (int64_t i = budget; i < count; ++i) kept[all[i].pair] = 0;
    }
  });
  return kept;
}

// Token Reroute: whoever holds fewer than top_k asks its next experts; a refusal is final. Columns
// never asked for become unused.
Flags reroute(const Round& round, int32_t* expert_ids, const ParallelFor& parallel_for) {
  const Select& config = round.config;
  const int64_t columns = config.columns;
  Flags asked(config.tokens * columns, 0), kept(asked);
  for (int64_t r = 0; r < config.reroute_rounds; ++r) {
    Flags asking = kept;
    bool anyone = false;
    for (int64_t t = 0; t < config.tokens; ++t) {
      const int64_t start = t * columns;
      int64_t wanted = config.top_k - std::count(kept.begin() + start, kept.begin() + start + columns, 1);
      for (int64_t pair = start; pair < start + columns && wanted > 0; ++pair) {
        if (asked[pair] || expert_ids[pair] == config.num_experts) continue;
        asked[pair] = asking[pair] = anyone = true;
        --wanted;
      }
    }
    if (!anyone) break;
    kept = compete(round, asking, parallel_for);
  }
  for (size_t pair = 0; pair < asked.size(); ++pair) {
    if (!asked[pair]) expert_ids[pair] = static_cast<int32_t>(config.num_experts);
  }
  return kept;
}

// Leaves each token its max_per_token best kept experts: higher score, then lower expert.
void limit_per_token(const Round& round, Flags& kept, const ParallelFor& parallel_for) {
  const int64_t columns = round.config.columns, limit = round.config.max_per_token;
  parallel_for(round.config.tokens, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own;
    for (int64_t t = begin; t < end; ++t) {
      own.clear();
      for (int64_t pair = t * columns; pair < (t + 1) * columns; ++pair) {
        if (kept[pair]) own.push_back(pair);
      }
      std::sort(own.begin(), own.end(), [&](int64_t a, int64_t b) {
        const uint32_t left = orderable(round.scores[a]), right = orderable(round.scores[b]);
        return left != right ? left > right : round.expert_ids[a] < round.expert_ids[b];
      });
      for (size_t i = limit; i < own.size(); ++i) kept[own[i]] = 0;
    }
  });
}

void write_weights(const float* weights, const Flags& kept, const Select& config, float* out,
                   const ParallelFor& parallel_for) {
  parallel_for(config.tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double sum = 0;  // in double, so that the order of addition does not show in float
      for (int64_t pair = t * config.columns; pair < (t + 1) * config.columns; ++pair) {
        out[pair] = kept[pair] ? weights[pair] : 0.0f;
        sum += out[pair];
      }
      if (config.kept_weight_sum < 0) continue;
      const float total = static_cast<float>(std::max(sum, 1e-20));
      for (int64_t pair = t * config.columns; pair < (t + 1) * config.columns; ++pair) {
        out[pair] = out[pair] / total * config.kept_weight_sum;
      }
    }
  });
}

// A row for every kept pair: an expert's rows are in token order.
void assign_rows(const Flags& kept, const Select& config, const Selection& out) {
  const int64_t columns = config.columns;
  std::fill_n(out.tokens_per_expert, config.num_experts, 0);
  for (size_t pair = 0; pair < kept.size(); ++pair) {
    if (kept[pair]) ++out.tokens_per_expert[out.expert_ids[pair]];
  }
  place_experts(config, out);
  std::vector<int32_t> next(out.expert_offsets, out.expert_offsets + config.num_experts);
  for (int64_t t = 0; t < config.tokens; ++t) {
    for (int64_t pair = t * columns; pair < (t + 1) * columns; ++pair) {
      out.rows[pair] = kept[pair] ? next[out.expert_ids[pair]]++ : -1;
      if (kept[pair]) out.row_tokens[out.rows[pair]] = static_cast<int32_t>(t);
    }
  }
}

void count_demand(const Select& config, const int32_t* expert_ids, int32_t* demand) {
  std::fill_n(demand, config.num_experts, 0);
  for (int64_t t = 0; t < config.tokens; ++t) {
    for (int64_t j = 0; j < std::min(config.top_k, config.columns); ++j) {
      const int32_t id = expert_ids[t * config.columns + j];
      if (id < config.num_experts) ++demand[id];
    }
  }
}

}  // namespace

void place_experts(const Select& config, const Selection& out) {
  const int64_t align = config.row_alignment;
  out.expert_offsets[0] = 0;
  for (int64_t e = 0; e < config.num_experts; ++e) {
    const int64_t start = out.expert_offsets[e], count = out.tokens_per_expert[e];
    const int64_t rows = config.padded_rows >= 0 ? config.padded_rows : (count + align - 1) / align * align;
    if (count > rows || start + rows > config.rows) {
      throw std::runtime_error("num_rows is too small for what experts keep");
    }
    out.expert_offsets[e + 1] = static_cast<int32_t>(start + rows);
    std::fill(out.row_tokens + start + count, out.row_tokens + start + rows, -1);
  }
  std::fill(out.row_tokens + out.expert_offsets[config.num_experts], out.row_tokens + config.rows, -1);
}

template <class Id>
void select(const Id* ids, const float* weights, const float* scores, const bool* token_mask,
            const int64_t* token_priority, const Select& config, int64_t capacity, const Selection& out,
            const ParallelFor& parallel_for) {
  if (once_is_enough(config, token_priority != nullptr)) {
    return select_once(ids, weights, scores, token_mask, config, capacity, out, parallel_for);
  }
  clean_ids(ids, token_mask, config, out.expert_ids, parallel_for);
  count_demand(config, out.expert_ids, out.demand_per_expert);
  const Round round{config, capacity, out.expert_ids, scores, token_priority};
  Flags kept;
  if (config.reroute_rounds > 1) {
    kept = reroute(round, out.expert_ids, parallel_for);
  } else {
    Flags asking(config.tokens * config.columns);
    for (size_t pair = 0; pair < asking.size(); ++pair) asking[pair] = out.expert_ids[pair] < config.num_experts;
    kept = compete(round, asking, parallel_for);
  }
  if (config.max_per_token < config.columns) limit_per_token(round, kept, parallel_for);
  write_weights(weights, kept, config, out.weights, parallel_for);
  assign_rows(kept, config, out);
}

template void select(const int32_t*, const float*, const float*, const bool*, const int64_t*, const Select&, int64_t,
                     const Selection&, const ParallelFor&);
template void select(const int64_t*, const float*, const float*, const bool*, const int64_t*, const Select&, int64_t,
                     const Selection&, const ParallelFor&);

}  // namespace capmoe::cpu
