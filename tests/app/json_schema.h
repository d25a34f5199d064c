// Holds a JSON value against a schema: the part of JSON Schema that tests/data/schemas uses.
//
// type, properties, required, additionalProperties (false), items, enum, const, minimum, maximum,
// minItems. A keyword beyond these is an error, so that no schema states what nobody checks.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace offstage::testing {

class SchemaCheck {
 public:
  explicit SchemaCheck(const std::string& file)
      : schema_(nlohmann::json::parse(
            std::ifstream(std::string(OFFSTAGE_TEST_DATA) + "/schemas/" + file))) {}

  std::vector<std::string> problems(const nlohmann::json& value) {
    problems_.clear();
    check(schema_, value, "$");
    return problems_;
  }
  const nlohmann::json& schema() const { return schema_; }

 private:
  void say(const std::string& where, const std::string& what) {
    if (problems_.size() < 20) problems_.push_back(where + ": " + what);
  }

  static bool is_of(const std::string& type, const nlohmann::json& value) {
    if (type == "integer") return value.is_number_integer();
    if (type == "number") return value.is_number();  // NaN is written as null
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "array") return value.is_array();
    return type == "object" && value.is_object();
  }

  void check(const nlohmann::json& schema, const nlohmann::json& value, const std::string& where) {
    for (const auto& [keyword, rule] : schema.items()) {
      if (keyword == "type") {
        if (!is_of(rule, value))
          return say(where, fmt::format("not {}: {}", rule.dump(), value.dump()));
      } else if (keyword == "required") {
        for (const std::string name : rule)
          if (!value.contains(name)) say(where, "lacks " + name);
      } else if (keyword == "properties") {
        for (const auto& [name, part] : rule.items())
          if (value.contains(name)) check(part, value[name], where + "." + name);
      } else if (keyword == "additionalProperties") {
        check_no_more(schema, value, where);
      } else if (keyword == "items") {
        for (size_t i = 0; i < value.size(); ++i)
          check(rule, value[i], fmt::format("{}[{}]", where, i));
      } else if (!check_value(keyword, rule, value)) {
        say(where, fmt::format("{} {}: {}", keyword, rule.dump(), value.dump()));
      }
    }
  }

  void check_no_more(const nlohmann::json& schema, const nlohmann::json& value,
                     const std::string& where) {
    for (const auto& [name, part] : value.items())
      if (!schema["properties"].contains(name)) say(where, "undocumented " + name);
  }

  static bool check_value(const std::string& keyword, const nlohmann::json& rule,
                          const nlohmann::json& value) {
    if (keyword == "enum") return std::find(rule.begin(), rule.end(), value) != rule.end();
    if (keyword == "const") return value == rule;
    if (keyword == "minimum") return value >= rule;
    if (keyword == "maximum") return value <= rule;
    if (keyword == "minItems") return value.size() >= rule.get<size_t>();
    return keyword == "$schema" || keyword == "title";
  }

  nlohmann::json schema_;
  std::vector<std::string> problems_;
};

}  // namespace offstage::testing
