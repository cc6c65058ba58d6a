// Run an exported network knowing nothing but its manifest, in C++.
//
//   perceive MODEL.onnx OUT IMAGE... [--focal PIXELS]
//
// For files exported with `--preprocess embedded`. Writes to OUT for each image IMAGE.json (boxes, labels,
// probabilities) and IMAGE.TASK.bin, the map of every task that has one, row by row: a byte of class, or a
// little-endian float32 in the task's unit, for every pixel of the image.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

namespace fs = std::filesystem;
using nlohmann::ordered_json;

struct Image {
  int height = 0, width = 0;
  std::unique_ptr<std::uint8_t, void (*)(void *)> rgb{nullptr, stbi_image_free};
};

Image read(const std::string &path) {
  Image image;
  int channels = 0;
  image.rgb.reset(stbi_load(path.c_str(), &image.width, &image.height, &channels, 3));
  if (!image.rgb) throw std::runtime_error(path + ": " + stbi_failure_reason());
  return image;
}

void write(const fs::path &path, const void *data, std::size_t bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char *>(data), static_cast<std::streamsize>(bytes));
  if (!file) throw std::runtime_error(path.string() + " cannot be written");
}

/// The boxes over the task's threshold.
ordered_json instances(const ordered_json &task, const Ort::Value &boxes, const Ort::Value &scores,
                       const Ort::Value &labels) {
  const auto *box = boxes.GetTensorData<float>();
  const auto *score = scores.GetTensorData<float>();
  const auto *label = labels.GetTensorData<std::int64_t>();
  ordered_json found = ordered_json::array();
  const std::size_t count = scores.GetTensorTypeAndShapeInfo().GetElementCount();
  for (std::size_t i = 0; i < count; ++i) {
    if (score[i] <= 0 || score[i] < task["score_threshold"].get<float>()) continue;
    found.push_back({{"box", std::vector<float>(box + 4 * i, box + 4 * i + 4)},
                     {"label", task["classes"][static_cast<std::size_t>(label[i])]},
                     {"score", score[i]}});
  }
  return found;
}

/// In the task's unit: what is seen through the canonical lens, through one of `focal` pixels of the image.
std::vector<float> quantity(const ordered_json &task, const Ort::Value &value, double focal) {
  const auto *data = value.GetTensorData<float>();
  std::vector<float> found(data, data + value.GetTensorTypeAndShapeInfo().GetElementCount());
  const double canonical = task["canonical_focal"];
  const float factor = canonical > 0 ? static_cast<float>(focal / canonical) : 1.0F;
  float low = std::numeric_limits<float>::lowest(), high = std::numeric_limits<float>::max();
  if (!task["limits"].is_null()) low = task["limits"][0], high = task["limits"][1];
  for (float &one : found) one = std::clamp(one * factor, low, high);
  return found;
}

void see(Ort::Session &session, const ordered_json &manifest, const std::string &path, const fs::path &out,
         double focal) {
  const Image image = read(path);
  const std::vector<std::int64_t> shape{1, image.height, image.width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto bytes = static_cast<std::size_t>(image.height) * static_cast<std::size_t>(image.width) * 3;
  const auto images =
      Ort::Value::CreateTensor<std::uint8_t>(memory, image.rgb.get(), bytes, shape.data(), shape.size());
  std::vector<const char *> names;
  for (const auto &item : manifest["outputs"].items()) names.push_back(item.key().c_str());
  const std::string given = manifest["input"]["name"];
  const char *input = given.c_str();
  const auto outputs = session.Run(Ort::RunOptions{nullptr}, &input, &images, 1, names.data(), names.size());

  const auto value = [&](const std::string &name) -> const Ort::Value & {
    const auto place = std::find_if(names.begin(), names.end(), [&](const char *one) { return name == one; });
    return outputs.at(static_cast<std::size_t>(place - names.begin()));
  };
  ordered_json record{{"size", {image.height, image.width}}};
  const fs::path stem = out / fs::path(path).stem();
  for (const auto &[name, task] : manifest["tasks"].items()) {
    const auto nth = [&, &name = name, &task = task](std::size_t i) -> const Ort::Value & {
      return value(name + "." + task["outputs"][i].get<std::string>());
    };
    if (task["annotation_type"] == "instances") {
      record[name] = instances(task, nth(0), nth(1), nth(2));
    } else if (task["annotation_type"] == "label") {
      const auto *data = nth(0).GetTensorData<float>();
      for (std::size_t i = 0; i < task["classes"].size(); ++i) {
        record[name][task["classes"][i].get<std::string>()] = data[i];
      }
    } else if (!task["classes"].empty()) {
      write(stem.string() + "." + name + ".bin", nth(0).GetTensorData<std::uint8_t>(), bytes / 3);
    } else {
      const double pixels = focal > 0 ? focal : task["default_focal"].get<double>() * image.width;
      const auto values = quantity(task, nth(0), pixels);
      write(stem.string() + "." + name + ".bin", values.data(), values.size() * sizeof(float));
    }
  }
  const std::string text = record.dump() + "\n";
  write(stem.string() + ".json", text.data(), text.size());
  std::cout << path << "\n";
}

int main(int count, char **words) try {
  std::vector<std::string> arguments(words + 1, words + count);
  double focal = 0;
  if (const auto at = std::find(arguments.begin(), arguments.end(), "--focal"); arguments.end() - at > 1) {
    focal = std::stod(*(at + 1));
    arguments.erase(at, at + 2);
  }
  if (arguments.size() < 3) {
    std::cerr << "usage: perceive MODEL.onnx OUT IMAGE... [--focal PIXELS]\n";
    return 2;
  }
  const Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "perceive");
  Ort::Session session(environment, arguments[0].c_str(), Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("perception.manifest", allocator);
  if (!text) throw std::runtime_error(arguments[0] + " has no manifest. Export it with `perception export`.");
  const auto manifest = ordered_json::parse(text.get());
  if (manifest["input"]["preprocess"] != "embedded") {
    throw std::runtime_error(arguments[0] + " wants letterboxed images. Export it with --preprocess embedded.");
  }
  fs::create_directories(arguments[1]);
  for (std::size_t i = 2; i < arguments.size(); ++i) see(session, manifest, arguments[i], arguments[1], focal);
  return 0;
} catch (const std::exception &error) {
  std::cerr << error.what() << "\n";
  return 1;
}
