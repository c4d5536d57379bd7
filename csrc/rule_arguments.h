// A rule as the ops take it: by name, with a list of parameters; checked, shared by CPU and CUDA.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "rules.h"
#include "tensors.h"

namespace modgrad {

struct RuleKind {
  const char* name;
  RuleName value;
  bool of_scores;
  size_t num_parameters, num_states;
};

constexpr RuleKind kRuleKinds[] = {
    {"ogm", RuleName::kOgm, true, 2, 0},          {"equal_norms", RuleName::kEqualNorms, false, 2, 0},
    {"mmpareto", RuleName::kMMPareto, false, 1, 0}, {"pcgrad", RuleName::kPCGrad, false, 0, 0},
    {"gradnorm", RuleName::kGradNorm, false, 2, 2},
};

// Without what it reads: pointers to that are null.
inline Rule checked_rule(const std::string& name, const std::vector<double>& parameters, bool of_scores,
                         int64_t num_modalities, int64_t num_losses) {
  const auto kind = std::find_if(std::begin(kRuleKinds), std::end(kRuleKinds),
                                 [&](const RuleKind& k) { return name == k.name; });
  STD_TORCH_CHECK(kind != std::end(kRuleKinds), "`rule` is '", name, "', which is none");
  STD_TORCH_CHECK(kind->of_scores == of_scores, "`rule` '", name, "' reads ", kind->of_scores ? "scores" : "a gram");
  STD_TORCH_CHECK(parameters.size() == kind->num_parameters, "`parameters` has ", parameters.size(),
                  " entries, allowed: ", kind->num_parameters);
  STD_TORCH_CHECK((kind->value == RuleName::kOgm || kind->value == RuleName::kEqualNorms) == (num_losses == 1),
                  "`rule` '", name, "' has ", num_losses, " losses, allowed: 1 or, where it compares them, more");
  STD_TORCH_CHECK(kind->value != RuleName::kMMPareto || num_losses == num_modalities + 1, "`rule` '", name, "' has ",
                  num_losses, " losses, allowed: one more than ", num_modalities);
  Rule rule = {kind->value, {}, num_modalities, num_losses, nullptr, nullptr, nullptr, {}};
  std::copy(parameters.begin(), parameters.end(), rule.parameters);
  return rule;
}

// Fills in what the rule reads besides the statistic.
inline void set_states(Rule& rule, const std::optional<Tensor>& losses, const std::vector<Tensor>& states) {
  const size_t wanted = rule.name == RuleName::kGradNorm ? 2 : 0;
  STD_TORCH_CHECK(states.size() == wanted, "`states` has ", states.size(), " entries, allowed: ", wanted);
  if (wanted == 0) return;
  STD_TORCH_CHECK(losses.has_value(), "`losses` is None, allowed with this rule: float32 [K]");
  check_vector("losses", *losses, ScalarType::Float, rule.num_losses);
  rule.losses = losses->const_data_ptr<float>();
  for (size_t s = 0; s < wanted; ++s) {
    check_vector("states", states[s], ScalarType::Float, rule.num_losses);
    rule.states[s] = states[s].const_data_ptr<float>();
  }
}

// The rule of an op that is given its statistic.
inline Rule rule_of(const Tensor& statistic, const std::string& name, const std::vector<double>& parameters,
                    const std::optional<Tensor>& losses, const std::vector<Tensor>& states) {
  const bool of_scores = statistic.dim() == 1;
  STD_TORCH_CHECK(of_scores || statistic.dim() == 3, "`statistic` has ", statistic.dim(), " dimensions, allowed: 1, 3");
  const int64_t num_modalities = statistic.size(0), num_losses = of_scores ? 1 : statistic.size(2);
  check_vector("statistic", statistic, of_scores ? ScalarType::Float : ScalarType::Double,
               of_scores ? num_modalities : num_modalities * num_losses * num_losses);
  Rule rule = checked_rule(name, parameters, of_scores, num_modalities, num_losses);
  if (of_scores)
    rule.scores = statistic.const_data_ptr<float>();
  else
    rule.gram = statistic.const_data_ptr<double>();
  set_states(rule, losses, states);
  return rule;
}

// The rule of an op that measures a gram itself.
inline Rule checked_balance(size_t num_out, size_t num_grads, const std::string& name,
                            const std::vector<double>& parameters, const std::optional<Tensor>& losses,
                            const std::vector<Tensor>& states, int64_t num_groups, int64_t num_losses) {
  STD_TORCH_CHECK(num_out > 0, "`out` is empty, allowed: at least one tensor");
  STD_TORCH_CHECK(num_groups > 0 && num_losses > 0, "`num_groups` and `num_losses` are ", num_groups, " and ",
                  num_losses, ", allowed: at least 1");
  STD_TORCH_CHECK(num_grads > 0 || num_losses == 1, "`grads` is empty, allowed with one loss only");
  Rule rule = checked_rule(name, parameters, false, num_groups, num_losses);
  set_states(rule, losses, states);
  return rule;
}

// The rule of the scores of logits from number num_joint on, without what it reads.
inline std::optional<Rule> rule_of_scores(const std::optional<std::string>& name,
                                          const std::optional<std::vector<double>>& parameters, int64_t num_logits,
                                          int64_t num_joint) {
  if (!name.has_value()) return std::nullopt;
  STD_TORCH_CHECK(num_joint >= 0 && num_joint + 2 <= num_logits, "`num_joint` is ", num_joint, ", allowed with ",
                  num_logits, " logits and a rule: 0 to ", num_logits - 2);
  return checked_rule(*name, parameters.value_or(std::vector<double>()), true, num_logits - num_joint, 1);
}

// The tensors of a RuleOut.
struct RuleTensors {
  Tensor weights, next, scratch;

  RuleTensors(const Rule& rule, size_t num_states, const Tensor& like)
      : weights(torch::stable::new_empty(like, {rule.num_modalities, rule.num_losses}, ScalarType::Float)),
        next(torch::stable::new_empty(like, {static_cast<int64_t>(num_states), rule.num_losses}, ScalarType::Float)),
        scratch(torch::stable::new_empty(like, {rule.num_modalities, 2, rule.num_losses}, ScalarType::Double)) {}

  RuleOut out() const {
    return {weights.mutable_data_ptr<float>(), next.mutable_data_ptr<float>(), scratch.mutable_data_ptr<double>()};
  }
};

}  // namespace modgrad
