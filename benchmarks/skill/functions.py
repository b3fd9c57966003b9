"""The functions that cases are drawn from, all invented: two tables, of parameters and of functions by field.

A parameter's row: names | type | description | values | phrases. The first name is the one that functions refer to; a
case draws one of them. Types are the leaderboard's. Values: `1..9` integers, `0.5..20/0.5` floats by step, `@city` a
pool, `a, b` words to choose from (an enum of the schema, where the type is enum), `yes no` booleans; an array says how
many: `2-4 of @dish`. Phrases, separated by `;`, are what a request says of the value, `{}` being it; a boolean has the
phrases for true, then behind `/` those for false.

A function's row: name | description | what a request asks for | parameters, the optional ones as `name=default`.
What begins with `what`, `how` or `which` is a question; everything else is an order.
"""

from dataclasses import dataclass
from functools import cache

HELD_OUT = frozenset(
    {"aquarium", "library", "orchard", "theatre", "railway", "pottery", "chemistry", "tournament", "laundry", "wind"}
)

POOLS = {
    "city": "Lisbon, Oslo, Nairobi, Kyoto, Quito, Porto, Tallinn, Hanoi, Bergen, Leeds, Accra, Lima, Turin, Basel, Cork, Ghent, Malmo, Izmir, Split, Perth, Austin, Boise, Tampa, Denver, Halifax, New Orleans, San Jose, Cape Town, Rio Branco, Ulm",
    "country": "Norway, Kenya, Japan, Peru, Portugal, Estonia, Vietnam, Ghana, Italy, Croatia, Chile, Canada, Iceland, Morocco, Nepal, Fiji",
    "person": "Amina Diallo, Jonas Weber, Priya Nair, Tom Hughes, Lucia Ferri, Kenji Mori, Sara Lind, Omar Haddad, Nina Kovac, Paul Adeyemi, Grace Kim, Ivan Petrov, Maya Cohen, Leo Santos, Ruth Okafor, Emil Dahl",
    "first": "Amina, Jonas, Priya, Tom, Lucia, Kenji, Sara, Omar, Nina, Paul, Grace, Ivan, Maya, Leo, Ruth, Emil",
    "firm": "Northwind Tools, Bluefin Foods, Harbor Glass, Redwood Paper, Silverline Bikes, Oak and Elm, Kestrel Labs, Juniper Textiles, Granite Bank, Tidal Power",
    "dish": "lentil soup, apple pie, fried rice, mushroom risotto, tomato salad, pumpkin bread, fish stew, potato pancakes, bean chili, lemon cake",
    "food": "onions, rice, tomatoes, garlic, flour, butter, spinach, lentils, carrots, eggs, ginger, chickpeas, mushrooms, cheese",
    "animal": "otter, heron, red fox, hedgehog, barn owl, salmon, lynx, tortoise, beaver, puffin, moose, gecko",
    "plant": "basil, rosemary, maple, fern, tulip, lavender, oak, orchid, mint, sunflower, ivy, birch",
    "colour": "red, navy blue, forest green, yellow, black, white, orange, violet, grey, teal",
    "word": "harbor, lantern, meadow, copper, thunder, velvet, orchard, signal, pebble, winter, compass, ribbon",
    "title": "The Glass River, Night Ferry, A Quiet Orchard, Seven Lamps, The Long Harvest, Paper Mountains, Salt and Stone, The Last Orbit, Winter Keys, Green Signal",
    "topic": "coral reefs, the history of paper, solar power, medieval bridges, volcanoes, jazz, bees, deep sea mining, ancient Rome, glaciers, robotics, tea",
    "date": "",
    "time": "",
    "code": "",
    "email": "",
    "year": "",
    "metal": "iron, copper, zinc, silver, nickel, lead, aluminium, tin",
    "currency": "euro, dollar, yen, pound, peso, krona, rupee, franc",
    "language": "Spanish, Swahili, Japanese, Portuguese, Norwegian, Hindi, Greek, Finnish, Dutch, Korean",
    "sport": "handball, rowing, tennis, curling, hockey, volleyball, rugby, fencing",
    "song": "Blue Morning, Count the Waves, Paper Boat, Hold the Line Again, Slow Train Home, Summer Rust, Ten Small Lights",
    "device": "kitchen lamp, bedroom heater, garage door, hall light, coffee machine, porch camera, office fan, attic sensor",
    "message": "Running ten minutes late, The parcel has arrived, Please call me back, Lunch is moved to one, Happy birthday to you, The meeting room is ready",
    "item": "desk lamp, wool blanket, garden hose, rain jacket, bike pump, tea kettle, phone case, step ladder, paint brush",
    "file": "notes.txt, report.pdf, budget.xlsx, photo.png, backup.zip, readme.md, invoice.csv, slides.pptx",
    "team": "Harbor Hawks, River Foxes, Iron Bears, Coast Riders, North Stars, Valley Kings, Lake Wolves",
    "street": "12 Mill Lane, 48 Station Road, 7 Harbour Street, 230 Oak Avenue, 5 Chapel Hill, 91 River Walk",
}  # fmt: skip

PARAMETERS = """
origin, from_city, departure_city, start_city | string | City of departure. | @city | from {}; starting in {}; leaving {}
destination, to_city, arrival_city, target_city | string | City of arrival. | @city | to {}; bound for {}; going to {}
city, town, location, place, city_name | string | Name of the city. | @city | in {}; in {}; around {}
country, nation, country_name | string | Name of the country. | @country | in {}; in {}; within {}
date, day, on_date, when | string | Date as YYYY-MM-DD. | @date | on {}; on {}; dated {}
start_date, first_day, begin_date, check_in | string | First day as YYYY-MM-DD. | @date | starting on {}; beginning {}; with {} as the first day
end_date, last_day, until_date, check_out | string | Last day as YYYY-MM-DD. | @date | until {}; ending on {}; with {} as the last day
time, start_time, at_time, hour | string | Time as HH:MM. | @time | at {}; at {}; around {}
year, in_year, calendar_year | integer | The year. | @year | in {}; in the year {}; for {}
people, passengers, party_size, guests, seats | integer | Number of people. | 1..9 | for {} people; for a group of {}; with {} people
nights, number_of_nights, stay_length | integer | Number of nights. | 2..14 | for {} nights; staying {} nights
days, number_of_days, duration_days | integer | Number of days. | 2..30 | for {} days; over {} days; lasting {} days
minutes, duration, length_minutes, duration_minutes | integer | Duration in minutes. | 5..180/5 | for {} minutes; lasting {} minutes; {} minutes long
hours, duration_hours, number_of_hours | float | Duration in hours. | 0.5..12/0.5 | for {} hours; over {} hours; lasting {} hours
years, term, number_of_years, period_years | integer | Number of years. | 2..30 | for {} years; over {} years; after {} years
person, name, client, customer_name, full_name | string | Name of the person. | @person | for {}; in the name of {}; on behalf of {}
recipient, to, send_to, addressee | string | Who receives it. | @first | to {}; addressed to {}; for {}
email, email_address, contact | string | E-mail address. | @email | with the e-mail {}; using {}; via {}
code, id, reference, number, identifier | string | Reference code. | @code | with reference {}; number {}; under code {}
company, firm, business, company_name | string | Name of the company. | @firm | of {}; for {}; at {}
dish, meal, recipe_name, food | string | Name of the dish. | @dish | for {}; of {}; called {}
ingredients, foods, items, available | array | Ingredients to use. | 2-4 of @food | with {}; using {}; made from {}
without, exclude, avoid, allergens | array | Ingredients to leave out. | 1-3 of @food | without {}; leaving out {}; avoiding {}
servings, portions, serves | integer | Number of servings. | 1..12 | for {} servings; serving {}; enough for {}
diet, diet_type | enum | Kind of diet. | vegan, vegetarian, keto, halal | that is {}; in {} style; suited to a {} diet
animal, species, animal_name | string | Name of the animal. | @animal | of the {}; for the {}; about the {}
plant, plant_name, crop | string | Name of the plant. | @plant | of {}; for {}; called {}
colour, color, shade, paint | string | Colour. | @colour | in {}; coloured {}; with {} as the colour
size, item_size | enum | Size. | small, medium, large | in size {}; of {} size; in {}
word, term_text, keyword, text | string | The word. | @word | of the word '{}'; for '{}'; with the word '{}'
words, keywords, tags, terms | array | List of words. | 2-4 of @word | with the words {}; for {}; using the terms {}
title, book_title, work, name_of_work | string | Title of the work. | @title | called '{}'; titled "{}"; named {}
author, writer, creator, by | string | Name of the author. | @person | by {}; written by {}; from {}
topic, subject, theme, about | string | The topic. | @topic | about {}; on {}; on the topic of {}
language, to_language, target_language, lang | string | Language. | @language | in {}; into {}; in the {} language
metal, material, substance | string | The material. | @metal | of {}; made of {}; for {}
amount, sum, value, total | float | Amount of money. | 10..5000/0.5 | of {}; for {}; with an amount of {}
price, max_price, budget, price_limit | float | Highest price. | 5..900/0.5 | for at most {}; under {}; with a budget of {}
currency, currency_name, money_unit | string | The currency. | @currency | in {}; in the currency {}
to_currency, target, target_currency, into | string | Currency to convert into. | @currency | into {}; to {}; expressed in {}
from_currency, source, source_currency, base | string | Currency to convert from. | @currency | from {}; starting from {}; given in {}
rate, interest_rate, annual_rate, percent | float | Yearly rate in percent. | 0.5..12/0.25 | at {} percent; at a rate of {}%; with {}% interest
quantity, count, units, how_many | integer | How many. | 1..40 | {} pieces; a quantity of {}; {} units
limit, max_results, top, number_of_results | integer | Most results to return. | 2..25 | showing at most {} results; limited to {} results; the first {} results
length, length_m, long | float | Length in metres. | 0.5..60/0.5 | with a length of {} metres; {} metres long; of length {}
width, width_m, breadth | float | Width in metres. | 0.5..40/0.5 | with a width of {} metres; {} metres wide; of width {}
height, height_m, tall | float | Height in metres. | 0.5..40/0.5 | with a height of {} metres; {} metres high; of height {}
radius, r, radius_m | float | Radius in metres. | 0.5..30/0.5 | with a radius of {}; of radius {}; whose radius is {} metres
side, edge, side_length | integer | Length of a side. | 1..60 | with sides of {}; of side {}; whose side measures {}
angle, degrees, angle_deg | integer | Angle in degrees. | 5..175/5 | at an angle of {} degrees; of {} degrees; turned by {} degrees
mass, mass_kg, weight | float | Mass in kilograms. | 0.5..120/0.5 | with a mass of {} kg; weighing {} kilograms; of {} kg
speed, velocity, speed_ms | float | Speed in metres per second. | 1..90/0.5 | at {} m/s; moving at {} metres per second; with a speed of {} m/s
distance, distance_km, range_km | float | Distance in kilometres. | 1..400/0.5 | over {} km; for a distance of {} kilometres; within {} km
temperature, degrees_c, temp | float | Temperature in degrees Celsius. | 5..95/0.5 | at {} degrees; at a temperature of {} C; set to {} degrees Celsius
volume, litres, volume_l | float | Volume in litres. | 0.5..200/0.5 | holding {} litres; with a volume of {} litres; of {} l
pressure, pressure_kpa, kpa | float | Pressure in kilopascals. | 20..400/0.5 | at {} kPa; under a pressure of {} kilopascals
voltage, volts, v | float | Voltage in volts. | 1..240/0.5 | at {} volts; with a voltage of {} V
current, amperes, amps | float | Current in amperes. | 0.5..30/0.5 | with a current of {} A; drawing {} amperes
force, newtons, force_n | float | Force in newtons. | 1..500/0.5 | with a force of {} N; of {} newtons
numbers, values, data, samples | array:integer | List of numbers. | 3-6 of 1..99 | of {}; for the numbers {}; over {}
measures, readings, series, observations | array:float | List of readings. | 3-5 of 0.5..40/0.5 | of {}; for the readings {}; given {}
n, count_to, upper, maximum | integer | Upper bound. | 5..500 | up to {}; for n equal to {}; until {}
k, choose, pick, subset | integer | How many are chosen. | 2..9 | choosing {}; taking {} at a time; {} of them
a, first_number, x, left | integer | First number. | 2..400 | with {} as the first number; where the first is {}; starting with {}
b, second_number, y, right | integer | Second number. | 2..400 | and {} as the second number; where the second is {}; together with {}
probability, chance, p | float | Probability from 0 to 1. | 0.05..0.95/0.05 | with probability {}; at a chance of {}; for p = {}
decimals, precision, round_to, places | integer | Digits behind the point. | 1..6 | with {} decimals; rounded to {} places; to {} digits
sport, game, discipline | string | The sport. | @sport | in {}; for {}; playing {}
team, club, team_name | string | Name of the team. | @team | of the {}; for the {}; about the {}
opponent, rival, against | string | The other team. | @team | against the {}; versus the {}; facing the {}
song, track, song_title | string | Title of the song. | @song | called {}; titled '{}'; named "{}"
songs, tracks, song_list | array | Titles of songs. | 2-3 of @song | with {}; containing {}; made of {}
genre, style, kind | enum | Genre. | jazz, folk, rock, classical, techno | of the {} genre; in the {} genre; that is {}
mood, feeling, tone | enum | Mood. | calm, happy, serious, formal | in a {} mood; with a {} tone; that sounds {}
level, difficulty, grade | enum | Level. | beginner, intermediate, advanced | at {} level; for {} level; of {} difficulty
priority, urgency, importance | enum | How urgent it is. | low, normal, high, urgent | with {} priority; as {} priority; marked {}
format, output, output_format, file_type | enum | Format of the result. | csv, json, pdf, html | as {}; in {} format; exported to {}
unit, units_of, measure | enum | Unit of the result. | metric, imperial | in {} units; using {} units
order, sort, sort_order | enum | Order of the results. | ascending, descending | in {} order; sorted {}
vehicle, vehicle_type, transport | enum | Kind of vehicle. | car, van, bicycle, motorcycle, truck | by {}; with a {}; using a {}
travel_class, cabin, fare_class | enum | Class of travel. | economy, business, first | in {} class; travelling {} class
room_type, room, room_kind | enum | Kind of room. | single, double, suite, family | in a {} room; with a {} room
method, algorithm, approach | enum | Method to use. | linear, exact, fast, random | with the {} method; by the {} method
device, appliance, gadget, device_name | string | Name of the device. | @device | of the {}; for the {}; on the {}
brightness, level_percent, intensity | integer | Level from 0 to 100. | 5..100/5 | at {} percent; to {}%; at level {}
message, body, content, note | string | Text of the message. | @message | saying '{}'; with the text "{}"; that reads '{}'
item, product, article, product_name | string | Name of the product. | @item | of the {}; for a {}; named {}
products, articles, item_list | array | Names of products. | 2-3 of @item | with {}; containing {}; listing {}
file, path, filename, file_name | string | Name of the file. | @file | of {}; for {}; named {}
files, paths, attachments | array | Names of files. | 2-3 of @file | with {}; for {}; containing {}
address, street, delivery_address | string | Street address. | @street | to {}; at {}; for the address {}
grams, weight_g, amount_g | integer | Weight in grams. | 25..900/25 | weighing {} grams; of {} g; with {} grams
age, age_years, years_old | integer | Age in years. | 3..90 | aged {}; who is {} years old; of age {}
rating, stars, min_rating | float | Lowest rating. | 1..5/0.5 | rated at least {}; with {} stars or more; of rating {} and up
page, page_number, chapter | integer | Page number. | 1..300 | on page {}; at page {}; from page {}
scores, points, marks | array:integer | List of scores. | 3-5 of 1..100 | with scores {}; of {}; for the marks {}
names, members, people_names, attendees | array | Names of people. | 2-4 of @first | with {}; for {}; including {}
cities, stops, towns, places_list | array | List of cities. | 2-4 of @city | through {}; for {}; covering {}
include_tax, with_tax, taxed | boolean | Whether tax is included. | yes no | with tax included; tax included / without tax; before tax
round_trip, return_trip, both_ways | boolean | Whether it is a return trip. | yes no | as a round trip; both ways / one way only; not as a round trip
notify, send_alert, alert | boolean | Whether to send a notice. | yes no | and notify me; with a notice sent / without notifying anyone; with no notice
detailed, verbose, full, details | boolean | Whether to give all details. | yes no | with all details; in full detail / without details; only in brief
public, visible, shared | boolean | Whether others can see it. | yes no | visible to everyone; as a public one / kept private; not public
weekly, repeat, recurring | boolean | Whether it repeats. | yes no | repeating every week; as a recurring one / just once; not repeating
breakfast, with_breakfast, meals_included | boolean | Whether breakfast is included. | yes no | with breakfast; breakfast included / without breakfast; no breakfast needed
compressed, zip, pack | boolean | Whether to compress it. | yes no | compressed; in compressed form / uncompressed; without compression
organic, certified, organic_only | boolean | Only organic ones. | yes no | organic only; that are organic / not necessarily organic; organic or not
case_sensitive, exact_case, match_case | boolean | Whether case counts. | yes no | matching case; with case counted / ignoring case; whatever the case
tank, basin, aquarium_name | string | Name of the tank. | Coral Hall, Tide Pool, River Bend, Deep Blue | in {}; of the {} tank; for {}
ph, acidity, ph_value | float | pH value. | 4.5..9.5/0.1 | at a pH of {}; with pH {}
glaze, finish, coating | string | Name of the glaze. | celadon, tin white, iron black, ash grey | with a {} glaze; glazed in {}; finished with {}
cone, firing, kiln_program | integer | Kiln program. | 1..12 | on kiln program {}; with program {}; using program {}
row, seat_row, line | integer | Row number. | 1..30 | in row {}; in row number {}
platform, track_number, quay | integer | Platform number. | 1..18 | at platform {}; on platform {}
spin, rpm, spin_speed | integer | Spin speed. | 400..1600/100 | at {} rpm; spinning at {}; with a spin of {}
fabric, cloth, textile | enum | Kind of fabric. | cotton, wool, silk, linen | for {}; of {}; made for {}
blades, blade_count, rotors | integer | Number of blades. | 2..6 | with {} blades; having {} blades
molarity, concentration, molar | float | Moles per litre. | 0.05..3/0.05 | at {} mol/l; with a concentration of {} molar
compound, formula, chemical | string | The compound. | water, ethanol, acetone, sodium chloride, methane | of {}; for {}; containing {}
round, stage, round_number | integer | Round. | 1..9 | in round {}; for round {}
"""

FUNCTIONS = """
# travel
book_ferry | Book places on a ferry. | book a ferry; reserve a ferry crossing; get ferry tickets | origin destination date people vehicle=car
find_flights | Search flights between two cities. | find flights; look for a flight; search plane connections | origin destination date travel_class=economy limit=5
travel_distance | Distance between two cities. | work out the distance; what is the distance; how far is it | origin destination unit=metric
plan_road_trip | Plan a road trip through cities. | plan a road trip; put together a road trip | cities days vehicle=car
rent_car | Rent a car. | rent a car; arrange a rental car; get me a hire car | city start_date end_date price=300.0
trip_cost | Estimate the cost of a trip. | estimate the cost of a trip; what does a trip cost | destination days people
# hotel
book_room | Book a hotel room. | book a hotel room; reserve a room; get a hotel room | city start_date nights room_type=double breakfast=false
hotel_search | Search hotels by price and rating. | search for hotels; find hotels; list places to stay | city price rating=3.0
cancel_stay | Cancel a hotel booking. | cancel the hotel booking; call off the stay | code notify=true
room_price | Price of a hotel room. | what is the price of a room; check the room price | city room_type nights
# weather
city_forecast | Weather forecast of a city. | give the weather forecast; what will the weather be; show the forecast | city days=3 unit=metric
past_weather | Weather of a day in the past. | look up the past weather; how was the weather | city date
rain_alert | Set an alert for rain. | set a rain alert; warn me about rain | city time notify=true
air_quality | Air quality of a city. | check the air quality; what is the air quality; how clean is the air | city detailed=false
# kitchen
find_recipe | Find a recipe. | find a recipe; look for something to cook; search recipes | ingredients diet=vegetarian without=none
scale_recipe | Scale a recipe to servings. | scale the recipe; adjust the recipe | dish servings
calories_of | Calories of a portion of food. | count the calories; how many calories are there; what are the calories | dish grams
set_oven | Set the oven. | set the oven; heat the oven; turn on the oven | temperature minutes
shopping_list | Make a shopping list. | make a shopping list; write a grocery list | ingredients organic=false
meal_plan | Make a meal plan. | make a meal plan; plan my meals; set up a menu | days diet people=2
# restaurant
reserve_table | Reserve a table. | reserve a table; book a table; get us a table | city date time people
order_dish | Order a dish for delivery. | order food; have a dish delivered; order delivery | dish quantity address
restaurant_search | Find restaurants. | find a restaurant; which restaurants are there; look for places to eat | city diet=vegan rating=4.0
split_bill | Split a bill. | split the bill; divide the bill; how much does everyone pay of the bill | amount people include_tax=true
# geometry
rectangle_area | Area of a rectangle. | compute the area of a rectangle; what is the area of a rectangle; find a rectangle's area | length width
cylinder_volume | Volume of a cylinder. | compute the volume of a cylinder; what is the volume of a cylinder; how much does a cylinder hold | radius height
sphere_surface | Surface of a sphere. | find the surface of a sphere; what is the surface area of a sphere | radius decimals=2
cube_volume | Volume of a cube. | find the volume of a cube; what is the volume of a cube; calculate a cube's volume | side
arc_length | Length of an arc. | calculate the length of an arc; how long is an arc; what is the arc length | radius angle
box_diagonal | Diagonal of a box. | get the diagonal of a box; how long is the diagonal of a box | length width height
rotate_polygon | Rotate a regular polygon. | rotate a polygon; turn a polygon | side angle
# numbers
mean_of | Mean of numbers. | compute the mean; what is the average; find the mean value | numbers decimals=2
median_of | Median of numbers. | find the median; what is the median; determine the median | numbers
list_primes | List prime numbers. | list the prime numbers; which numbers are prime; give me all primes | n
common_divisor | Greatest common divisor. | find the greatest common divisor; what is the greatest common divisor | a b
least_multiple | Least common multiple. | find the least common multiple; what is the smallest common multiple | a b
add_numbers | Add two numbers. | add two numbers; what is the sum of two numbers; sum up two numbers | a b
power_of | Raise a number to a power. | raise a number to a power; compute a power | a k
combinations | Number of combinations. | count the combinations; how many combinations are there | n k
sort_numbers | Sort numbers. | sort the list; put the list in order; order the values | numbers order=ascending
moving_average | Moving average of a series. | smooth the series; compute the moving average | measures k
variance_of | Variance of readings. | calculate the variance; what is the variance; find the spread | measures decimals=3
binomial_chance | Chance of k successes in n trials. | compute the binomial probability; what is the chance of success | n k probability
# physics
kinetic_energy | Kinetic energy of a body. | compute the kinetic energy; what is the kinetic energy of a body | mass speed
travel_time | Time that a body takes. | how long does a body take; calculate the time of a ride | distance speed
power_used | Electric power. | compute the electric power; what is the power used | voltage current
resistance_of | Resistance of a circuit. | find the resistance; what is the resistance of the circuit | voltage current decimals=2
work_done | Work done by a force. | calculate the work done; how much work is done | force length angle=0
momentum_of | Momentum of a body. | find the momentum; what is the momentum of a body | mass speed
gas_state | State of a gas. | determine the state of the gas; describe the gas | pressure volume temperature
free_fall | Time of a free fall. | how long is a free fall; compute the time of a fall | height unit=metric
density_of | Density of a material. | what is the density; look up the density | metal temperature=20.0
# finance
loan_payment | Monthly payment of a loan. | compute the monthly payment of a loan; what is the monthly loan payment | amount rate years
savings_growth | Growth of savings. | how much will savings grow; calculate the growth of savings; project my savings | amount rate years weekly=false
convert_money | Convert money. | convert money; change money; how much is the money worth | amount from_currency to_currency
share_quote | Price of a company's stock. | look up the stock price; what is the share price; check the stock | company date
pay_invoice | Pay an invoice. | pay the invoice; settle the bill | code amount date
send_money | Send money to a person. | send money; transfer money; wire some money | recipient amount currency=euro
tax_due | Tax due on an income. | work out the tax; how much tax is due; what tax is owed | amount country year
company_profit | Profit of a company. | get the profit; how much profit was made; look up the profit | company year detailed=false
# shop
search_products | Search products. | search for products; find something to buy; look for offers | words price=100.0 order=ascending
place_order | Order a product. | place an order; buy something; order it | item quantity address colour=white
track_parcel | Track a parcel. | track the parcel; locate my parcel; follow my shipment | code detailed=true
return_item | Return a product. | return the purchase; send back a product | item code
price_history | Price history of a product. | show the price history; how did the price change | item days
compare_products | Compare products. | compare products; set products side by side | products rating=3.0
stock_level | How many of a product are left. | check the stock level; how many are left | item city
# calendar
add_event | Add an event to the calendar. | add an event; put a meeting in the calendar; schedule an appointment | date time minutes names
list_events | List events of a day. | list the events; what is planned; show my appointments | date limit=10
move_event | Move an event. | move the event; reschedule the appointment | code date time
set_alarm | Set an alarm. | set an alarm; wake me up; start an alarm | time weekly=false
start_timer | Start a timer. | start a timer; set a timer; count down | minutes
invite_people | Invite people. | invite people; send invitations | names date public=false
# messages
send_text | Send a text message. | send a text message; text someone; write a message | recipient message
send_email | Send an e-mail. | send an e-mail; mail someone; write an e-mail | email message files=none
remind_me | Set a reminder. | set a reminder; remind me; create a reminder | message date time
search_mail | Search the mailbox. | search my mail; look through the inbox; find mails | words start_date=2026-01-01 limit=10
block_sender | Block a sender. | block the sender; stop mail from someone | email notify=false
# home
switch_on | Switch a device on. | switch on the device; turn on the device; power up the device | device minutes=60
dim_light | Dim a light. | dim the light; change the brightness; adjust the light | device brightness
set_heating | Set the heating. | set the heating; change the heating; warm the house | temperature hours=8.0
energy_use | Energy used by a device. | how much energy is used; show the energy use | device days
lock_door | Lock a door. | lock the door; secure the door | device time notify=true
paint_needed | Paint needed for a wall. | how much paint is needed; work out the paint for a wall | width height colour=white
# music
play_song | Play a song. | play a song; put on a song; start a song | song brightness=50
make_playlist | Make a playlist. | make a playlist; create a playlist; put together a playlist | songs title public=false
find_concerts | Find concerts. | find concerts; which concerts are on; look for live music | city genre date
tune_instrument | Tune an instrument. | tune the instrument; retune my instrument | level method=exact
song_lyrics | Lyrics of a song. | get the lyrics; what are the lyrics; show the text of a song | song language=English
# words
translate_text | Translate a text. | translate the text; put the text into another language | message language
define_word | Define a word. | define a word; what is the meaning; look up the meaning | word language=English
find_rhymes | Find rhymes. | find rhymes; which words rhyme; list rhymes | word limit=10
count_word | Count a word in a file. | count a word; how often does a word occur | word file case_sensitive=false
write_poem | Write a poem. | write a poem; compose a poem; make a poem | topic mood=calm
summarize_file | Summarise a file. | summarise the document; shorten the document; sum up the document | file limit=5
replace_word | Replace a word in files. | replace a word; swap a word | word files case_sensitive=true
# files
convert_file | Convert a file. | convert the file; change the file's format | file format
delete_files | Delete files. | delete the files; remove some files | files notify=true
make_backup | Back up files. | back up the files; make a backup; save a copy of the files | files compressed=true
share_file | Share a file. | share the file; give access to the file | file email public=false
find_files_by_tag | Find files by tags. | find files; look for files; search the folder | words format=pdf limit=10
count_lines | Count the lines of a file. | count the lines; how many lines are there | file
# health
log_weight | Log a weight. | log my weight; record the weight | mass date
heart_zone | Heart rate zone. | compute the heart rate zone; what is the heart rate zone for someone | age level=beginner
book_doctor | Book a doctor's appointment. | book a doctor; make a doctor's appointment; see a doctor | person date time priority=normal
burned_energy | Energy burned in sport. | how much energy is burned; work out the energy burned | sport minutes mass
sleep_report | Report on sleep. | report on my sleep; how was the sleep | start_date end_date detailed=false
water_goal | Daily goal of water. | set a water goal; compute how much water to drink | mass age
# sport
match_result | Result of a match. | get the result; how did the match end; look up the match result | team opponent date
league_table | Table of a league. | show the league table; which teams lead the league | sport year limit=10
find_court | Find a court. | find a court; look for a place to play; book a court | sport city time
training_plan | Make a training plan. | make a training plan; set up a training plan | sport days level=beginner
run_pace | Pace of a run. | compute the pace of a run; what is the pace of a run | distance minutes
buy_match_tickets | Buy tickets for a match. | buy match tickets; get tickets for a match | team people price=60.0
# school
grade_average | Average of marks. | compute the grade average; what is the average mark | scores decimals=1
enrol_student | Enrol a student. | enrol a student; sign up a student; register a student | person topic level=beginner
make_quiz | Make a quiz. | make a quiz; prepare a quiz; create a test | topic quantity level=intermediate
find_course | Find a course. | find a course; which courses are offered; look for a class | topic language=English price=200.0
record_absence | Record an absence. | record an absence; note an absence | person date notify=true
homework_list | List homework. | list the homework; what homework is due | topic end_date
# history
event_year | Events of a year. | what happened; list what happened; tell me the events | country year limit=5
ruler_of | Ruler of a country. | find the ruler; which ruler was there; tell me who ruled | country year
city_founded | When a city was founded. | look up when the city was founded; how old is the city | city detailed=true
timeline | Timeline of a topic. | draw a timeline; show the timeline; make a timeline | topic start_date end_date
# animals
animal_facts | Facts about an animal. | give facts; tell me something; what is known | animal detailed=true
animal_lifespan | Lifespan of an animal. | what is the lifespan; how long is the life | animal
report_sighting | Report a sighting. | report a sighting; record that I saw an animal | animal city date quantity=1
feeding_plan | Plan of feeding. | make a feeding plan; plan the feeding | animal mass days=7
adopt_pet | Adopt a pet. | adopt a pet; take in a pet | animal person age
# garden
water_plants | Water plants. | water the plants; start the watering; irrigate | plant minutes weekly=false
planting_time | When to plant. | what is the time to plant; tell me the planting time | plant country
soil_needed | Soil needed for a bed. | how much soil is needed; work out the soil for a bed | length width height
frost_warning | Warning of frost. | set a frost warning; warn me of frost | city temperature
identify_pest | Identify a pest. | identify a pest; which pest is it | plant colour detailed=false
# cars
fuel_cost | Cost of fuel. | how much does the fuel cost; compute the fuel cost | distance price vehicle=car
service_car | Book a service. | book a car service; have my vehicle serviced | code date priority=normal
find_parking | Find parking. | find parking; look for a parking space; which car parks are free | city hours price=20.0
stopping_distance | Stopping distance. | compute the stopping distance; what is the stopping distance | speed mass=1500.0
charge_battery | Charge a car's battery. | charge the battery; plug in and charge | brightness time
toll_price | Price of a toll. | what is the toll; look up the toll | origin destination vehicle=car
# work
create_task | Create a task. | create a task; add a task; open a ticket | message priority=normal end_date=none
assign_task | Assign a task. | assign the task; hand over the task | code recipient notify=true
log_hours | Log hours of work. | log my hours; record working time | hours date company
salary_after_tax | Salary after tax. | what is the salary after tax; compute the net salary | amount country
hire_person | Hire a person. | hire someone; employ someone | person company start_date
room_booking | Book a meeting room. | book a meeting room; reserve a meeting room | city people date hours=1.0
# law
find_case | Find a court case. | find a court case; look up a court case | code year=2020
file_complaint | File a complaint. | file a complaint; lodge a complaint | person company message
draft_contract | Draft a contract. | draft a contract; write a contract | person company years=1
trademark_check | Check a trademark. | check a trademark; see whether a trademark is free | word country
# space
planet_position | Position of a planet. | what is the position of the planet; compute the planet's position | date time
launch_schedule | Schedule of launches. | show the launch schedule; which launches are planned | year country limit=5
escape_speed | Escape speed of a body. | compute the escape speed; what is the escape speed | mass radius
moon_phase | Phase of the moon. | get the phase of the moon; what is the moon phase | date city=London
# photos
resize_photo | Resize a photo. | resize the photo; scale the picture | file quantity compressed=false
find_photos | Find photos. | find photos; show pictures; look for pictures | names city year=2025
make_album | Make an album. | make an album; create a photo album | title files public=false
tint_photo | Tint a photo. | tint the photo; recolour the picture | file colour brightness=50
# real estate
search_homes | Search homes. | search for homes; find a home; look for a flat | city price people=2
rent_estimate | Estimate a rent. | estimate the rent; what is a fair rent | city length width
book_viewing | Book a viewing. | book a viewing; arrange a viewing | address date time person
# news
search_news | Search the news. | search the news; what is the news; find articles | topic start_date limit=10
subscribe | Subscribe to a newsletter. | subscribe; sign me up for the newsletter | email topic weekly=true
podcast_search | Find podcasts. | find a podcast; look for podcasts; which podcasts are there | topic minutes=30 language=English
# data
filter_rows | Filter rows of a table. | filter the table; keep some rows of the table | file word limit=100
plot_series | Plot a series. | plot the series; draw a chart of the series | measures title colour=teal
fit_line | Fit a line to readings. | fit a line; run a regression | measures method=linear
merge_tables | Merge tables. | merge the tables; join the tables | files format=csv
random_sample | Draw a random sample. | draw a random sample; pick a sample | n k
# security
reset_password | Reset a password. | reset the password; renew the password | email notify=true
scan_file | Scan a file. | scan the file; check the file for viruses | file detailed=false
grant_access | Grant access. | grant access; let someone in | person code end_date
# transport
bus_departures | Departures of a bus. | show the bus departures; which buses leave | city time limit=5
book_taxi | Book a taxi. | book a taxi; call a cab; order a taxi | address time people=1
rent_bicycle | Rent a bicycle. | rent a bicycle; hire a bike | city hours size=medium
report_delay | Report a delay. | report a delay; log a delay | code minutes
# dance
find_lesson | Find a dancing lesson. | find a dancing lesson; look for dance classes | city level date
book_partner | Book a dancing partner. | book a dancing partner; find me a dancing partner | person time hours=1.0
# charity
donate | Donate money. | donate; make a donation; give money | company amount currency=dollar
volunteer | Sign up as a volunteer. | volunteer; sign up as a volunteer | person city date hours=4.0
# insurance
insurance_quote | Quote of an insurance. | get an insurance quote; what does the insurance cost | age vehicle years=1
report_damage | Report damage. | report damage; file a damage claim | code date amount
# sewing
fabric_needed | Fabric needed. | how much fabric is needed; work out the fabric | size length quantity=1
order_buttons | Order buttons. | order buttons; buy buttons | quantity colour
# mining
ore_yield | Yield of an ore. | compute the yield of the ore; what is the yield of the ore | metal mass probability
melt_metal | Melt a metal. | melt the metal; start melting | metal temperature hours=2.0
# aquarium
feed_fish | Feed the fish. | feed the fish; give the fish their food | tank grams time
check_water | Check a tank's water. | check the tank's water; how is the water in the tank | tank temperature=24.0 ph=7.0
move_fish | Move fish to another tank. | move the fish; put fish elsewhere | animal tank quantity
clean_tank | Clean a tank. | clean the tank; have the tank cleaned | tank date notify=true
tank_capacity | Capacity of a tank. | what is the capacity of a tank; compute how much the tank holds | length width height
# library
borrow_book | Borrow a book. | borrow a book; lend me a book; check out a book | title person days=21
renew_loan | Renew a loan. | renew the loan; extend the loan | code days
find_author | Find works of an author. | find works; list the books; which books are there | author year=2000 limit=10
reserve_desk | Reserve a reading desk. | reserve a reading desk; book a desk to read | date hours person
late_fee | Fee for a late return. | what is the late fee; compute the fee for a late return | days quantity=1
# orchard
count_trees | Count trees of a kind. | count the trees; how many trees are there | plant row
schedule_harvest | Schedule a harvest. | schedule the harvest; plan the picking | plant date names
press_juice | Press juice. | press juice; make juice | plant volume compressed=false
prune_rows | Prune rows of trees. | prune the trees; cut back the trees | row date level=beginner
crop_value | Value of a crop. | what is the crop worth; estimate the value of the crop | plant mass price
# theatre
buy_seats | Buy seats for a play. | buy theatre seats; get seats for the play | title date row people
cast_role | Cast an actor. | cast an actor; give the part to an actor | person title
stage_lights | Set the stage lights. | set the stage lights; change the stage lights | colour brightness minutes=10
rehearsal | Schedule a rehearsal. | schedule a rehearsal; plan a rehearsal | title date time names
costume_order | Order a costume. | order a costume; have a costume made | person size colour=black
# railway
train_times | Times of trains. | show the train times; which trains run | origin destination date limit=5
reserve_berth | Reserve a berth in a night train. | reserve a berth; book a bed on the night train | origin destination date travel_class=economy
platform_change | Announce another platform. | announce a platform change; tell people about the new platform | code platform notify=true
freight_rate | Rate for freight. | what is the freight rate; quote the freight | mass distance
season_ticket | Buy a season ticket. | buy a season ticket; get a season ticket | person start_date years=1
# pottery
fire_kiln | Fire the kiln. | fire the kiln; start the kiln | cone temperature hours
mix_glaze | Mix a glaze. | mix a glaze; prepare the glaze | glaze grams
clay_needed | Clay needed for pots. | how much clay is needed; work out the clay for pots | quantity radius height
book_wheel | Book a potter's wheel. | book a potter's wheel; reserve a wheel | person date hours=2.0
glaze_stock | Stock of a glaze. | check how much glaze is left; how much glaze is in stock | glaze detailed=false
# chemistry
dilute | Dilute a solution. | dilute the solution; thin the solution | compound volume molarity
molar_mass | Molar mass of a compound. | find the molar mass; what is the molar mass | compound decimals=2
titrate | Titrate a solution. | titrate the solution; run a titration | volume molarity ph=7.0
boiling_point | Boiling point of a compound. | what is the boiling point; look up the boiling point | compound pressure=101.5
store_sample | Store a sample. | store the sample; put the sample away | compound code temperature
# tournament
pair_players | Pair players. | pair the players; draw the pairings | names round
record_score | Record a score. | record a score; enter the result | team opponent scores
draw_bracket | Draw a bracket. | draw the bracket; set up the bracket | sport n public=true
prize_split | Split the prize money. | split the prize money; divide the prize | amount k
rank_teams | Rank the teams. | rank the teams; which team is the best | sport round order=descending
# laundry
start_wash | Start a wash. | start the wash; do the laundry; run the washing machine | fabric temperature spin=800
dry_clothes | Dry clothes. | dry the clothes; start the dryer | fabric minutes notify=false
stain_advice | Advice on a stain. | what is good against the stain; give advice on a stain | fabric colour
pickup_laundry | Have laundry picked up. | have the laundry picked up; send someone for the laundry | address date mass
iron_shirts | Iron shirts. | iron the shirts; have shirts ironed | quantity fabric time=12:00
# wind
turbine_power | Power of a turbine. | compute the turbine's power; what is the power of the turbine | radius speed blades=3
wind_speed_at | Wind speed at a height. | what is the wind speed; look up the wind | city height date
stop_turbine | Stop a turbine. | stop the turbine; shut down the turbine | code hours notify=true
farm_output | Output of a wind farm. | how much does the wind farm give; compute the output of the farm | quantity speed days
inspect_blades | Inspect blades. | inspect the blades; have the blades looked at | code blades date
"""


@dataclass(frozen=True)
class Parameter:
    """A row of PARAMETERS. phrases: of a boolean, those for true and those for false; of others, one group."""

    names: list[str]
    type: str
    description: str
    values: str
    phrases: list[list[str]]


@dataclass(frozen=True)
class Function:
    """A row of FUNCTIONS. parameters: the required ones; optional: name -> default as text, `none` for none stated."""

    field: str
    name: str
    description: str
    requests: list[str]
    parameters: list[str]
    optional: dict[str, str]


@cache
def parameters() -> dict[str, Parameter]:
    """Read PARAMETERS, by the first name."""
    read = {}
    for line in PARAMETERS.strip().splitlines():
        names, kind, description, values, phrases = map(str.strip, line.split("|"))
        groups = [[phrase.strip() for phrase in group.split(";")] for group in phrases.split(" / ")]
        parameter = Parameter([name.strip() for name in names.split(",")], kind, description, values, groups)
        assert parameter.names[0] not in read, parameter.names[0]
        read[parameter.names[0]] = parameter
    return read


@cache
def functions() -> list[Function]:
    """Read FUNCTIONS, in order."""
    read, field = [], ""
    for line in FUNCTIONS.strip().splitlines():
        if line.startswith("# "):
            field = line[2:].strip()
            continue
        name, description, requests, named = map(str.strip, line.split("|"))
        split = [word.partition("=") for word in named.split()]
        required = [word for word, equals, _ in split if not equals]
        optional = {word: default for word, equals, default in split if equals}
        read.append(Function(field, name, description, [r.strip() for r in requests.split(";")], required, optional))
    assert len({function.name for function in read}) == len(read), "two functions of one name"
    return read
